"""Multi-head attention, grouped or not, over the sequence itself or over another."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import Linear
from mmjax.nn.norm import Norm
from mmjax.nn.rope import alibi_slopes, rope_frequencies, rotate
from mmjax.sharding import constrain


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    softcap: float = 0.0,
    scale: float = 0.0,
    bias: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale q kᵀ + bias) v with float32 logits.

    Args:
      q: [B, T, H, D]. k, v: [B, S, G, D]; H is a multiple of G (grouped-query attention, Ainslie et al. 2023).
      mask: bool [B, T, S], [B, 1, S] for all queries alike, or None for all keys. A query that sees no key gets
        zeros, not an average of everything.
      softcap: c > 0 bounds the logits to c tanh(logits / c) (Gemma 2).
      scale: 0 for 1 / sqrt(D). bias: float32 [B, H, T, S], or None.

    Returns:
      [B, T, H, D].
    """
    b, t, h, d = q.shape
    g = k.shape[2]
    # [B, G, H/G * T, D] and [B, G, S, D]: plain batched matrix products, with no large transpose around them.
    q = (q * (scale or d**-0.5)).reshape(b, t, g, h // g, d).transpose(0, 2, 3, 1, 4).reshape(b, g, -1, d)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("bgqd,bgsd->bgqs", q, k, preferred_element_type=jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits += bias.reshape(b, g, -1, bias.shape[-1])
    if mask is not None:
        hidden = jnp.where(jnp.broadcast_to(mask, (b, t, mask.shape[2])), 0.0, jnp.finfo(jnp.float32).min)
        logits += jnp.tile(hidden[:, None], (1, 1, h // g, 1))
    # Divided by its sum after the product with v, the softmax costs D / S of the divisions.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    y = jnp.einsum("bgqs,bgsd->bgqd", weights.astype(v.dtype), v) / total.astype(v.dtype)
    y = y.reshape(b, h, t, d).swapaxes(1, 2)
    return y if mask is None else jnp.where(mask.any(-1)[:, :, None, None], y, 0)


# Attention without anything special: what a family has beyond that, its own table says.
PLAIN = dict(
    qk_norm="",
    qk_norm_whole=False,
    rope_theta=0.0,
    rope_fraction=1.0,
    rope_sections=(),
    rope_scaling=None,
    alibi=False,
    query_scale=0.0,
    attention_softcap=0.0,
)


class Attention(nn.Module):
    """Projections to queries, keys and values, attention, and the projection back. [B, T, D] -> [B, T, D].

    For the fields see nn/block.py.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    qk_norm: str
    qk_norm_whole: bool
    norm_eps: float
    rope_theta: float
    rope_fraction: float
    rope_sections: tuple[int, ...]
    rope_scaling: Mapping[str, Any] | None
    alibi: bool
    query_scale: float
    attention_softcap: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, x, source=None, *, mask=None, positions=None, key_positions=None, rope=None, kv=None, update=None
    ):
        """Attends from x to `source` (default: x itself).

        Args:
          x: [B, T, D]. source: [B, S, D']. mask: bool [B, T, S] or None.
          positions: int32 [B, T], of x, or [B, T, C] with rope_sections. key_positions: int32 [B, S], for ALiBi;
            default: `positions`.
          rope: what rope_frequencies returns, where it is not that of this module's fields.
          kv: keys and values projected before, ([B, S, G, Dh], same), instead of `source`.
          update: function (k, v) -> (k, v) that writes them to a cache and returns all that it holds.

        Returns:
          ([B, T, D], (k, v) as projected from `source`).
        """
        linear = functools.partial(Linear, dtype=self.dtype, param_dtype=self.param_dtype)
        if self.rope_theta and rope is None:
            rope = rope_frequencies(self.head_dim, self.rope_theta, self.rope_fraction, self.rope_scaling)

        def project(name, y, heads):
            y = linear(heads * self.head_dim, bias=self.qkv_bias, name=name)(y)
            split = (*y.shape[:2], heads, self.head_dim)
            if self.qk_norm and name != "value":
                norm = Norm(self.qk_norm, self.norm_eps, self.param_dtype, name=f"{name}_norm")
                y = norm(y if self.qk_norm_whole else y.reshape(split))
            y = y.reshape(split)
            if self.rope_theta and name != "value":
                y = rotate(y, positions, rope, self.rope_sections)
            return constrain(y, "batch", "seq", "heads", None)

        q = project("query", x, self.heads)
        if kv is None:
            source = x if source is None else source
            kv = project("key", source, self.kv_heads), project("value", source, self.kv_heads)
        k, v = update(*kv) if update else kv
        bias = None
        if self.alibi:
            key_positions = positions if key_positions is None else key_positions
            distance = jnp.abs(positions[:, None, :, None] - key_positions[:, None, None, :])
            bias = -alibi_slopes(self.heads)[:, None, None] * distance
        y = attend(q, k, v, mask, self.attention_softcap, self.query_scale, bias)
        y = y.reshape(*y.shape[:2], self.heads * self.head_dim)
        return linear(x.shape[-1], bias=self.out_bias, name="out")(y), kv
