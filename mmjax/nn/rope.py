"""Rotary position embeddings (Su et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def rotate(
    x: jax.Array,
    positions: jax.Array,
    theta: float,
    fraction: float,
    sections: Sequence[int] = (),
    axial: bool = False,
) -> jax.Array:
    """Rotates the first `fraction` of each head's dimensions by its token's position.

    Pairs are (i, i + R/2), the half-split layout of Hugging Face's Llama.

    Args:
      x: [B, T, H, D]. positions: int32 [B, T], or [B, T, C] with `sections`. theta: base of the wavelengths.
      fraction: of D, 1.0 for all.
      sections: how many of the pairs each of C components turns, in order (M-RoPE: Qwen2-VL, section 2.1);
        positions [B, T] are those with equal components.
      axial: each of C components turns an equal share of the pairs, through all wavelengths (2-D ViTs).

    Raises:
      ValueError: sections that are not all pairs, or positions that they do not fit.
    """
    rotary = int(x.shape[-1] * fraction) // 2 * 2
    if positions.ndim == 2:
        positions = positions[:, :, None]
    components = positions.shape[-1]
    if axial:
        sections = (rotary // 2 // components,) * components
    if components > 1 and len(sections) != components:
        raise ValueError(f"rope_sections: {len(sections)} for positions of {components} components.")
    if sections and sum(sections) != rotary // 2:
        raise ValueError(f"rope_sections: {tuple(sections)} are not the {rotary // 2} pairs of a head.")
    if components > 1:
        positions = jnp.repeat(positions, np.asarray(sections), axis=-1, total_repeat_length=rotary // 2)
    exponent = jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary
    if axial:
        exponent = jnp.concatenate([jnp.arange(n, dtype=jnp.float32) / n for n in sections])
    angle = (positions.astype(jnp.float32) * theta**-exponent)[:, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second, rest = jnp.split(x, [rotary // 2, rotary], axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate([*(r.astype(x.dtype) for r in rotated), rest], axis=-1)
