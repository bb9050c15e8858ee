"""How likely a model finds given text: for choosing among answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.buckets import bucket
from mmjax.inference.program import check_positions, last_hidden, pad_tokens, repeat_rows
from mmjax.model import MultimodalLM
from mmjax.types import Batch


def log_likelihood(model: MultimodalLM, params: Mapping[str, Any], batch: Batch) -> np.ndarray:
    """Sum of the log-probabilities of each row's targets, the tokens whose loss_weight is above 0; float32 [B].

    Vocabulary-sized logits are computed at the targets only.

    Raises:
      UserError: more tokens than learned positions.
    """
    check_positions(model, batch, 0)
    batch = pad_tokens(batch, bucket(batch.tokens.shape[1]))
    targets = np.asarray(batch.loss_weight) > 0
    targets[:, 0] = False  # nothing comes before the first token that could predict it
    width = min(bucket(int(targets.sum(1).max()), smallest=8), targets.shape[1])
    where = np.argsort(~targets, axis=1, kind="stable")[:, :width].astype(np.int32)
    counted = np.take_along_axis(targets, where, axis=1)
    return np.asarray(_log_likelihood(model, params, batch, where, counted))


@functools.partial(jax.jit, static_argnames=("model",))
def _log_likelihood(model: MultimodalLM, params, batch: Batch, where: jax.Array, counted: jax.Array) -> jax.Array:
    """where: int32 [B, C], the targets' places in their rows; counted: bool [B, C], False in surplus places."""
    hidden = model.apply(params, batch).hidden
    before = jnp.take_along_axis(hidden, jnp.maximum(where - 1, 0)[:, :, None], axis=1)
    log_probs = jax.nn.log_softmax(model.logits(params, before), axis=-1)
    tokens = jnp.take_along_axis(batch.tokens, where, axis=1)
    chosen = jnp.take_along_axis(log_probs, tokens[:, :, None], axis=-1)[:, :, 0]
    return jnp.where(counted, chosen, 0).sum(1)


def log_likelihood_of_replies(
    model: MultimodalLM, params: Mapping[str, Any], batch: Batch, replies: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Sum of the log-probabilities of each reply's counted tokens behind its prompt, float32 [B, C].

    A prompt is read once for all its replies.

    Args:
      batch: B prompts, as for `sample.generate`. replies: int32 [B, C, R], C of each, padded on the right.
      counted: bool [B, C, R], which of their tokens count.

    Raises:
      UserError: more tokens than learned positions.
    """
    check_positions(model, batch, replies.shape[2] - 1)  # the last token is never read
    batch = pad_tokens(batch, bucket(batch.tokens.shape[1]))
    return np.asarray(_log_likelihood_of_replies(model, params, batch, replies, counted))


@functools.partial(jax.jit, static_argnames=("model",))
def _log_likelihood_of_replies(model: MultimodalLM, params, batch: Batch, replies: jax.Array, counted: jax.Array):
    b, c, r = replies.shape
    hidden, cache = model.prefill(params, batch, model.cache(b, batch.tokens.shape[1] + r - 1))
    first = jnp.repeat(last_hidden(hidden, batch.segments), c, axis=0)[:, None]
    tokens = replies.reshape(b * c, r)
    hidden, _ = model.decode(params, tokens[:, :-1], repeat_rows(cache, c))
    logits = model.logits(params, jnp.concatenate([first, hidden], axis=1))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, :, None], axis=-1)
    return jnp.where(counted, chosen.reshape(b, c, r), 0).sum(2)
