"""One transformer layer; encoders and backbones are stacks of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from mmjax.errors import UserError
from mmjax.nn.attention import PLAIN as PLAIN_ATTENTION
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import Activation, FeedForward
from mmjax.nn.norm import Norm, NormKind
from mmjax.nn.rope import check_scaling
from mmjax.sharding import constrain
from mmjax.typed import Count, Natural, NotNegative, Share


def fields_of(module: nn.Module, cls: type) -> dict[str, Any]:
    """The values of `module`'s fields that `cls` has too."""
    names = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    return {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name in names}


# A block without anything special, likewise.
PLAIN = PLAIN_ATTENTION | dict(parallel=False, shared_norm=False, post_norm=False, layer_scale=0.0)


class BlockShape(nn.Module):
    """What distinguishes one family's transformer layer from another's.

    heads, kv_heads, head_dim: attention; kv_heads < heads is grouped-query attention.
    mlp_width, activation, gated: the feed-forward part. qkv_bias, out_bias, mlp_bias: which Linears have biases.
    norm, norm_eps: see nn/norm.py. qk_norm: norm of queries and keys per head, '' for none.
    qk_norm_whole: that norm is over all heads together (InternViT-6B).
    rope_theta, rope_fraction, rope_scaling: rotary positions, see nn/rope.py; theta 0 for none.
    rope_sections: how many pairs each component of a position turns, () where it is one number (M-RoPE).
    alibi: attention fades linearly with distance (Press et al. 2022).
    query_scale: factor on the queries, 0 for head_dim ** -0.5. attention_softcap: 0 for none.
    parallel: attention and feed-forward read the same input (Phi, GPT-NeoX); shared_norm: through one norm.
    post_norm: norms after each, too (Gemma 2).
    layer_scale: start of a learned factor for each channel of what attention and feed-forward add; 0 for none
      (LayerScale, Touvron et al. 2021, section 2.2).
    """

    heads: Count
    kv_heads: Count
    head_dim: Count
    mlp_width: Count
    activation: Activation
    gated: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    norm: NormKind
    norm_eps: NotNegative
    qk_norm: NormKind | Literal[""]
    qk_norm_whole: bool
    rope_theta: NotNegative
    rope_fraction: Share
    rope_sections: tuple[Natural, ...]
    rope_scaling: Mapping[str, Any] | None
    alibi: bool
    query_scale: NotNegative
    attention_softcap: NotNegative
    parallel: bool
    shared_norm: bool
    post_norm: bool
    layer_scale: NotNegative
    dtype: Any
    param_dtype: Any

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(f"kv_heads: {self.kv_heads} does not divide heads={self.heads}.")
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling, "rope_scaling")
        super().__post_init__()


def feed_forward(shape: BlockShape) -> FeedForward:
    """The feed-forward part of a block of that shape, to be called inside its `__call__`."""
    fields = (shape.mlp_width, shape.activation, shape.gated, shape.mlp_bias, shape.dtype, shape.param_dtype)
    return FeedForward(*fields, name="mlp")


class Block(BlockShape):
    """x += attention(norm(x)); x += mlp(norm(x)). [B, T, D] -> [B, T, D], and the keys and values."""

    @nn.compact
    def __call__(self, x, *, mask=None, positions=None, key_positions=None, rope=None, update=None):
        def norm(name, y):
            return Norm(self.norm, self.norm_eps, self.param_dtype, name=name)(y)

        def scale(name, y):
            if not self.layer_scale:
                return y
            start = nn.initializers.constant(self.layer_scale)
            return y * self.param(name, start, y.shape[-1:], self.param_dtype).astype(y.dtype)

        attention = Attention(**fields_of(self, Attention), name="attention")
        mlp = feed_forward(self)
        x = constrain(x, "batch", "seq", "embed")
        normed = norm("attention_norm", x)
        attended, kv = attention(
            normed, mask=mask, positions=positions, key_positions=key_positions, rope=rope, update=update
        )
        if self.parallel:
            fed = mlp(normed if self.shared_norm else norm("mlp_norm", x))
            return x + scale("attention_layer_scale", attended) + scale("mlp_layer_scale", fed), kv
        if self.post_norm:
            attended = norm("attention_post_norm", attended)
        x = x + scale("attention_layer_scale", attended)
        fed = mlp(norm("mlp_norm", x))
        if self.post_norm:
            fed = norm("mlp_post_norm", fed)
        return x + scale("mlp_layer_scale", fed), kv
