"""Normalisation over the last axis, computed in float32."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError

NormKind = Literal["layer", "layer_nobias", "rms", "rms1"]


class Norm(nn.Module):
    """One of four normalisations.

    'layer': LayerNorm with scale and bias. 'layer_nobias': with scale alone (MPT).
    'rms': RMSNorm with scale (Zhang and Sennrich 2019).
    'rms1': RMSNorm whose scale is 1 + weight (Gemma), so that weight decay pulls it to identity.
    """

    kind: str
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind not in ("layer", "layer_nobias", "rms", "rms1"):
            raise UserError(f"norm: {self.kind!r} is none of 'layer', 'layer_nobias', 'rms', 'rms1'.")
        dtype, width = x.dtype, x.shape[-1:]
        x = x.astype(jnp.float32)
        if self.kind.startswith("layer"):
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        start = nn.initializers.zeros if self.kind == "rms1" else nn.initializers.ones
        scale = self.param("scale", start, width, self.param_dtype).astype(jnp.float32)
        x = x * (scale + 1 if self.kind == "rms1" else scale)
        if self.kind == "layer":
            x = x + self.param("bias", nn.initializers.zeros, width, self.param_dtype).astype(jnp.float32)
        return x.astype(dtype)
