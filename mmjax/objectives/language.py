"""Losses on text."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.objectives.forward import Forward
from mmjax.types import Batch

CHUNK = 64  # positions of a row whose logits exist at one time


def next_token(forward: Forward, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Cross-entropy of each supervised token given those before it, in nats a token.

    Logits never exist for the whole batch, nor for unsupervised positions: each row's supervised positions
    are brought to its front, and chunks in which no row has any are skipped.

    Returns:
      next_token: (summed loss, summed weight). accuracy: (targets that are the most likely token, same weight).
    """
    hidden = forward(batch).hidden[:, :-1]
    targets = batch.tokens[:, 1:]
    weight = batch.loss_weight[:, 1:] * (batch.segments[:, 1:] == batch.segments[:, :-1])
    nll, correct = _chunked(forward, hidden, targets, weight)
    total = weight.sum()
    return {"next_token": (nll, total), "accuracy": (correct, total)}


def _chunked(forward: Forward, hidden: jax.Array, targets: jax.Array, weight: jax.Array):
    """Summed weighted negative log-likelihood and hits of hidden [B, T, D] for targets [B, T]."""
    b, t, _ = hidden.shape
    chunks = -(-t // CHUNK)
    order = jnp.argsort(weight <= 0, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, chunks * CHUNK - t)), constant_values=t - 1)
    real = jnp.arange(chunks * CHUNK) < t

    def chunked(x):
        """[B, chunks * CHUNK, ...] -> [chunks, B, CHUNK, ...]."""
        return x.reshape(b, chunks, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    hidden = chunked(jnp.take_along_axis(hidden, order[:, :, None], axis=1))
    targets = chunked(jnp.take_along_axis(targets, order, axis=1))
    weight = chunked(jnp.where(real, jnp.take_along_axis(weight, order, axis=1), 0))
    # What has no weight is not looked up: a picture's placeholder may lie beyond the table, where a lookup is NaN.
    targets = jnp.where(weight > 0, targets, 0)

    @jax.checkpoint  # the backward pass computes a chunk's logits again instead of keeping them
    def score(hidden, targets, weight):
        logits = forward.logits(hidden)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - picked
        return (nll * weight).sum(), ((logits.argmax(-1) == targets) * weight).sum()

    def body(sums, chunk):
        nothing = lambda *_: (jnp.zeros(()), jnp.zeros(()))  # noqa: E731
        scores = jax.lax.cond((chunk[2] > 0).any(), score, nothing, *chunk)
        return jax.tree.map(jnp.add, sums, scores), None

    # A short loop is unrolled: XLA on CPU runs the inside of a loop on one core.
    sums = jnp.zeros(()), jnp.zeros(())
    return jax.lax.scan(body, sums, (hidden, targets, weight), unroll=chunks <= 4)[0]
