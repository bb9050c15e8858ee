"""Rotary position embeddings (Su et al. 2021), and their scalings to contexts longer than trained for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.typed import Count, Positive, check_keys, check_types

Rope = tuple[jax.Array, Any]  # frequencies [R / 2], magnitude
_CONTEXT = {"original_max_position_embeddings": Count}
_REQUIRED = {
    "linear": {"factor": Positive},
    "llama3": {"factor": Positive, "low_freq_factor": Positive, "high_freq_factor": Positive} | _CONTEXT,
    "yarn": {"factor": Positive} | _CONTEXT,
}
_OPTIONAL = {
    "yarn": {"beta_fast": Positive, "beta_slow": Positive, "attention_factor": float | None, "truncate": bool}
}


def check_scaling(scaling: Mapping[str, Any], where: str) -> None:
    """Raises UserError for what is no `scaling` of `rope_frequencies`."""
    kind = scaling.get("type")
    if kind not in _REQUIRED:
        raise UserError(f"{where}: type {kind!r} is none of {', '.join(map(repr, _REQUIRED))}.")
    hints = _REQUIRED[kind] | _OPTIONAL.get(kind, {})
    check_keys(scaling, {"type", *hints}, _REQUIRED[kind], where)
    check_types(scaling, hints, where)
    if kind == "llama3" and scaling["low_freq_factor"] == scaling["high_freq_factor"]:
        raise UserError(f"{where}: low_freq_factor and high_freq_factor are the same.")


def rope_frequencies(
    head_dim: int, theta: float, fraction: float, scaling: Mapping[str, Any] | None = None
) -> Rope:
    """How fast each pair of a head's first `fraction` of dimensions turns, and how the turned pairs are scaled.

    Args:
      theta: base of the wavelengths. fraction: of head_dim, 1.0 for all.
      scaling: None, or `type` and its parameters under Hugging Face's names (modeling_rope_utils.py):
        'linear' (factor), 'llama3' (factor, low_freq_factor, high_freq_factor,
        original_max_position_embeddings), 'yarn' (factor, original_max_position_embeddings, and beta_fast,
        beta_slow, attention_factor, truncate if they differ from 32, 1, 0.1 ln(factor) + 1, True).

    Returns:
      (radians a position, float32 [R / 2]; a factor on the rotated dimensions).
    """
    rotary = int(head_dim * fraction) // 2 * 2
    frequency = theta ** (-jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary)
    if scaling is None:
        return frequency, 1.0
    kind, factor = scaling["type"], scaling["factor"]
    if kind == "linear":
        return frequency / factor, 1.0
    if kind == "llama3":
        return _llama3(frequency, scaling), 1.0
    return _yarn(frequency, theta, scaling)


def _llama3(frequency: jax.Array, scaling: Mapping[str, Any]) -> jax.Array:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / scaling["factor"])


def _yarn(frequency: jax.Array, theta: float, scaling: Mapping[str, Any]) -> Rope:
    """As Llama 3.1's, blended over pairs instead of wavelengths, and attention sharpened (Peng et al. 2023)."""
    pairs, context = len(frequency), scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        return pairs * math.log(context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.get("beta_fast", 32)), pair_of(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    stretched = jnp.clip((jnp.arange(pairs) - low) / max(high - low, 0.001), 0, 1)
    magnitude = scaling.get("attention_factor") or 0.1 * math.log(max(scaling["factor"], 1)) + 1
    return frequency * (1 - stretched + stretched / scaling["factor"]), magnitude


def rotate(x: jax.Array, positions: jax.Array, rope: Rope, sections: Sequence[int] = ()) -> jax.Array:
    """Rotates the first dimensions of each head by its token's position; the rest stays.

    Pairs are (i, i + R/2), the half-split layout of Hugging Face's Llama.

    Args:
      x: [B, T, H, D]. positions: int32 [B, T], or [B, T, C] with `sections`. rope: of `rope_frequencies`.
      sections: how many of the pairs each of C components turns, in order (M-RoPE: Qwen2-VL, section 2.1);
        positions [B, T] are those with equal components.

    Raises:
      UserError: sections that are not all pairs, or positions that they do not fit.
    """
    frequency, magnitude = rope
    half = frequency.shape[0]
    if sections and sum(sections) != half:
        raise UserError(f"rope_sections: {tuple(sections)} are not the {half} pairs of a head.")
    if positions.ndim == 2:
        positions = positions[:, :, None]
    elif positions.shape[-1] == len(sections):
        positions = jnp.repeat(positions, np.asarray(sections), axis=-1, total_repeat_length=half)
    else:
        raise UserError(f"rope_sections: {len(sections)} for positions of {positions.shape[-1]} components.")
    angle = (positions.astype(jnp.float32) * frequency)[:, :, None]
    cos, sin = jnp.cos(angle) * magnitude, jnp.sin(angle) * magnitude
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate([*(r.astype(x.dtype) for r in rotated), rest], axis=-1)


def alibi_slopes(heads: int) -> jax.Array:
    """How fast each head's attention fades with distance, float32 [H] (Press et al. 2022, section 3).

    For a number of heads that is no power of two, every second slope of the next one, then those left out.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    if power != heads:
        slopes = slopes[1::2] + slopes[::2]
    return jnp.asarray(slopes[:heads], jnp.float32)
