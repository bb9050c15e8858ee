"""Rotary position embeddings (Su et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, theta: float, fraction: float) -> jax.Array:
    """Rotates the first `fraction` of each head's dimensions by its token's position.

    Pairs are (i, i + R/2), the half-split layout of Hugging Face's Llama.

    Args:
      x: [B, T, H, D]. positions: int32 [B, T]. theta: base of the wavelengths. fraction: of D, 1.0 for all.
    """
    rotary = int(x.shape[-1] * fraction) // 2 * 2
    frequency = theta ** (-jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second, rest = jnp.split(x, [rotary // 2, rotary], axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate([*(r.astype(x.dtype) for r in rotated), rest], axis=-1)
