"""Linear and MLP projectors, with or without a reducer that merges neighbouring tokens first."""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import Activation, activation
from mmjax.nn.norm import Norm, NormKind
from mmjax.typed import Count, Natural


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """[..., N, D] -> [..., N / factor², factor² D]: each factor x factor neighbourhood of a square grid."""
    *lead, n, d = x.shape
    side = math.isqrt(n)
    if side * side != n or side % factor:
        raise UserError(f"pixel_shuffle: {n} tokens are no square grid that {factor} divides.")
    x = x.reshape(*lead, side // factor, factor, side // factor, factor, d).swapaxes(-4, -3)
    return x.reshape(*lead, n // factor**2, factor**2 * d)


def concat(x: jax.Array, factor: int) -> jax.Array:
    """[..., N, D] -> [..., N / factor, factor D]: consecutive tokens in raster order (MiniGPT-v2)."""
    *lead, n, d = x.shape
    if n % factor:
        raise UserError(f"concat: {factor} does not divide {n} tokens.")
    return x.reshape(*lead, n // factor, factor * d)


def average(x: jax.Array, factor: int) -> jax.Array:
    """[..., N, D] -> [..., N / factor², D]: the mean of each factor x factor neighbourhood of a square grid."""
    *lead, n, d = x.shape
    return pixel_shuffle(x, factor).reshape(*lead, n // factor**2, factor**2, d).mean(-2)


REDUCERS = {"none": lambda x, factor: x, "pixel_shuffle": pixel_shuffle, "concat": concat, "average": average}


class MLP(nn.Module):
    """Features [B, M, N, D] -> LLM tokens [B, M, K, width].

    depth: number of Linears, with `activation` between them; 1 is LLaVA's linear projector, 2 LLaVA-1.5's
        `mlp2x_gelu` (llava/model/multimodal_projector/builder.py).
    reduce, factor: 'none', 'pixel_shuffle' or 'average' (K = N / factor²), or 'concat' (K = N / factor).
    hidden: width between the Linears, 0 for `width` (Qwen2-VL's patch merger: that of its input).
    norm: '' or a norm on the output (nn/norm.py): keeps tokens from scratch at the scale an LLM expects.
    norm_in: '' or a norm on what the first Linear reads (InternVL).
    newline: one more token, K, the same learned one for each medium: for the text to put at the end of a row of
        patches (LLaVA-NeXT's `image_newline`).
    """

    width: int
    depth: Count
    activation: Activation
    bias: bool
    reduce: Literal[tuple(REDUCERS)]
    factor: Count
    norm: NormKind | Literal[""]
    dtype: Any
    param_dtype: Any
    hidden: Natural = 0
    norm_in: str = ""
    newline: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        if self.reduce not in REDUCERS:
            raise UserError(f"reduce: {self.reduce!r} is none of {', '.join(REDUCERS)}.")
        x = REDUCERS[self.reduce](features, self.factor)
        x = Norm(self.norm_in, 1e-5, self.param_dtype, name="norm_in")(x) if self.norm_in else x
        for i in range(self.depth):
            x = activation(self.activation)(x) if i else x
            width = self.width if i + 1 == self.depth else self.hidden or self.width
            x = Linear(width, self.bias, self.dtype, self.param_dtype, name=f"linear_{i}")(x)
        x = Norm(self.norm, 1e-6, self.param_dtype, name="norm")(x) if self.norm else x
        if not self.newline:
            return x
        token = self.param("newline", nn.initializers.normal(self.width**-0.5), (self.width,), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (*x.shape[:-2], 1, self.width))
        return jnp.concatenate([x, token], axis=-2)
