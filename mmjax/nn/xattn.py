"""Gated cross-attention: how Flamingo lets media into a frozen language model."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.nn.attention import Attention
from mmjax.nn.block import BlockShape, feed_forward, fields_of
from mmjax.nn.norm import Norm


class GatedCrossBlock(BlockShape):
    """x += tanh(g) xattn(norm(x), media); x += tanh(g') mlp(norm(x)). [B, T, D] -> [B, T, D].

    Both gates start at 0, so a fresh block changes no bit of what the language model computes (Flamingo,
    section 2.2; open_flamingo/src/helpers.py; Idefics: norm 'rms', gated, activation 'silu').

    gate: 'scalar', or 'vector' for one gate a dimension of x.
    """

    gate: str

    @nn.compact
    def __call__(self, x, media, *, mask, kv=None):
        """media: [B, S, D'], or None where kv holds its keys and values. mask: bool [B, T, S]. -> (x, kv)."""

        def norm(name):
            return Norm(self.norm, self.norm_eps, self.param_dtype, name=name)(x)

        def gate(name):
            scale = self.param(name, nn.initializers.zeros, shape, self.param_dtype)
            return jnp.tanh(scale.astype(jnp.float32)).astype(x.dtype)  # whatever dtype it is kept in

        if self.gate not in ("scalar", "vector"):
            raise UserError(f"gate: {self.gate!r} is neither 'scalar' nor 'vector'.")
        shape = () if self.gate == "scalar" else x.shape[-1:]

        attention = Attention(**fields_of(self, Attention), name="attention")
        attended, kv = attention(norm("attention_norm"), media, mask=mask, kv=kv)
        x = x + gate("attention_gate") * attended
        mlp = feed_forward(self)
        return x + gate("mlp_gate") * mlp(norm("mlp_norm")), kv
