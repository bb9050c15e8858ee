"""The perceiver resampler: any number of features to a fixed number of tokens."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.attention import PLAIN, Attention
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import Activation, FeedForward
from mmjax.nn.norm import Norm, NormKind
from mmjax.typed import Count, NotNegative


class Perceiver(nn.Module):
    """Features [B, M, N, D] -> tokens [B, M, latents, width], or [B, M, latents, D] without `project`.

    Learned latents attend `depth` times to the features and themselves (keys and values of both), each time
    followed by a feed-forward (Flamingo, section 2.1; open_flamingo/src/helpers.py: norm 'layer', activation
    'gelu'; Idefics: activation 'relu', and qk_norm 'layer', a norm of queries and keys per head).
    """

    width: int
    latents: Count
    depth: Count
    heads: Count
    head_dim: Count
    mlp_ratio: Count
    norm: NormKind
    norm_eps: NotNegative
    activation: Activation
    project: bool
    dtype: Any
    param_dtype: Any
    qk_norm: NormKind | Literal[""] = ""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        def norm(name, x):
            return Norm(self.norm, self.norm_eps, self.param_dtype, name=name)(x)

        b, m, n, d = features.shape
        features = features.reshape(b * m, n, d).astype(self.dtype)
        x = self.param("latents", nn.initializers.normal(1.0), (self.latents, d), self.param_dtype)
        x = jnp.broadcast_to(x.astype(self.dtype), (b * m, self.latents, d))
        for i in range(self.depth):
            attention = Attention(
                heads=self.heads,
                kv_heads=self.heads,
                head_dim=self.head_dim,
                qkv_bias=False,
                out_bias=False,
                norm_eps=self.norm_eps,
                **PLAIN | dict(qk_norm=self.qk_norm),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"attention_{i}",
            )
            latents = norm(f"latent_norm_{i}", x)
            source = jnp.concatenate([norm(f"feature_norm_{i}", features), latents], axis=1)
            x = x + attention(latents, source)[0]
            mlp = FeedForward(
                self.mlp_ratio * d,
                self.activation,
                False,
                False,
                self.dtype,
                self.param_dtype,
                name=f"mlp_{i}",
            )
            x = x + mlp(norm(f"mlp_norm_{i}", x))
        x = norm("norm_out", x)
        if self.project:
            x = Linear(self.width, False, self.dtype, self.param_dtype, name="project")(x)
        return x.reshape(b, m, self.latents, -1)
