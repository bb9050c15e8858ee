"""Losses that bring pictures and their texts together, and apart from the others of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.objectives.forward import Forward
from mmjax.types import Batch

SAME = 1 - 1e-5  # cosine above which two texts are one text


def image_text(forward: Forward, batch: Batch, temperature: float) -> dict[str, tuple[jax.Array, jax.Array]]:
    """InfoNCE of the batch's pictures with its texts, in both directions, in nats a picture (CLIP, Radford et al.
    2021, section 2.3); texts that are the same are all of them right (UniCL, Yang et al. 2022, section 3.1).

    A picture is the mean of its projected tokens, its text the mean of the embeddings of the supervised tokens
    that see it: both lie in the space that the language model reads, which itself does not run. A batch taken in
    parts (`accumulate`) compares within a part.

    Args:
      temperature: divides the cosines.

    Returns:
      image_text: (summed loss, pictures). retrieval: (pictures whose nearest text is their own, pictures).
    """
    if "image" not in batch.media:
        raise UserError("image_text: compares pictures with texts, and rows have none: data.media.slots is 0.")
    media = batch.media["image"]
    pictures = forward.encode(batch)["image"].astype(jnp.float32).mean(2)  # [B, M, D]
    one_hot = jax.nn.one_hot(media.visible, pictures.shape[1]) * (batch.loss_weight > 0)[:, :, None]  # [B, T, M]
    count = one_hot.sum(1)
    # A picture's placeholder may lie beyond the table, where a lookup is NaN.
    words = forward.embed(jnp.where(batch.loss_weight > 0, batch.tokens, 0)).astype(jnp.float32)
    texts = jnp.einsum("btm,btd->bmd", one_hot, words)
    texts = texts / jnp.maximum(count, 1)[:, :, None]
    real = (media.valid & (count > 0)).reshape(-1)
    pictures, texts = (_unit(x.reshape(-1, x.shape[-1])) for x in (pictures, texts))

    both = real[:, None] & real
    right = (texts @ texts.T > SAME) & both
    logits = jnp.where(both, pictures @ texts.T / temperature, -1e9)
    loss = (_nll(logits, right) + _nll(logits.T, right)) / 2
    nearest = jnp.take_along_axis(right, logits.argmax(1)[:, None], axis=1)[:, 0]
    total = real.sum().astype(jnp.float32)
    return {"image_text": (jnp.where(real, loss, 0).sum(), total), "retrieval": ((nearest & real).sum(), total)}


def _nll(logits: jax.Array, right: jax.Array) -> jax.Array:
    """Cross-entropy [P] of logits [P, P] with the uniform distribution over each row's right ones."""
    log_probs = jax.nn.log_softmax(logits, axis=1)
    return -(log_probs * right).sum(1) / jnp.maximum(right.sum(1), 1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)
