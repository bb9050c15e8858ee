"""Who may attend to whom: one rule for training, prefill and decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def steps(causal: jax.Array) -> jax.Array:
    """Causal step of each token, int32 [B, T]: tokens of one step see each other, and all earlier steps."""
    return jnp.cumsum(causal, axis=-1)


def attention_mask(
    query_steps: jax.Array, query_segments: jax.Array, key_steps: jax.Array, key_segments: jax.Array
) -> jax.Array:
    """bool [B, T, S], True where query t may attend to key s: same example, and no later causal step.

    Steps are int32 [B, T] and [B, S]; segments likewise, 0 for padding, which nobody attends to.
    """
    same = query_segments[:, :, None] == key_segments[:, None, :]
    reached = query_steps[:, :, None] >= key_steps[:, None, :]
    return same & reached & (key_segments[:, None, :] > 0)


def window_mask(
    mask: jax.Array | None, query_positions: jax.Array, key_positions: jax.Array, window: int
) -> jax.Array:
    """`mask` without the keys that lie `window` or more positions before the query (Beltagy et al. 2020).

    Positions are int32 [B, T] and [B, S]. What follows the query, in its own bidirectional block, stays.
    """
    near = query_positions[:, :, None] - key_positions[:, None, :] < window
    return near if mask is None else mask & near


def cross_mask(visible: jax.Array, valid: jax.Array, tokens: int) -> jax.Array:
    """bool [B, T, M * K]: token t attends to all K = `tokens` tokens of the one medium `visible[t]`, if valid."""
    media = jnp.arange(valid.shape[1])
    seen = (visible[:, :, None] == media) & valid[:, None, :]
    return jnp.repeat(seen, tokens, axis=-1)
