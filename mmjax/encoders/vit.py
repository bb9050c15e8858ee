"""The vision transformer: CLIP, SigLIP, DINOv2, EVA and plain ViTs are settings of it."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.nn.attention import Attention
from mmjax.nn.block import PLAIN, Block, BlockShape, feed_forward, fields_of
from mmjax.nn.linear import Linear
from mmjax.nn.norm import Norm
from mmjax.nn.stack import run, stacked
from mmjax.typed import Count, Natural, Positive

_VIT = PLAIN | dict(
    gated=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    norm="layer",
)
_CLIP = _VIT | dict(
    activation="quick_gelu",
    norm_eps=1e-5,
    stem="patch",
    stem_bias=False,
    class_token=True,
    registers=0,
    pre_norm=True,
    final_norm=True,
    position="learned",
    pool="none",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
_SIGLIP = _CLIP | dict(
    activation="gelu_tanh",
    norm_eps=1e-6,
    stem_bias=True,
    class_token=False,
    pre_norm=False,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
# EVA-CLIP-g as BLIP-2 has it: 39 of its 40 layers (Li et al. 2023, section 3.1).
_EVA = _CLIP | dict(activation="gelu", norm_eps=1e-6, stem_bias=True, pre_norm=False)
_DINOV2 = _EVA | dict(layer_scale=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_INTERNVIT = _DINOV2 | dict(layer_scale=0.1, final_norm=False, qk_norm_whole=True)
_L14 = dict(patch=14, width=1024, depth=24, heads=16, kv_heads=16, head_dim=64, mlp_width=4096)
VARIANTS = {
    "vit": _SIGLIP,
    "clip": _CLIP,
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "eva": _EVA,
    "dinov2": _DINOV2,
    "internvit": _INTERNVIT,
    "dinov2_reg": _DINOV2 | dict(registers=4),
    "clip-L/14": _CLIP | _L14 | dict(size=224),
    "clip-L/14-336": _CLIP | _L14 | dict(size=336),
    "siglip-so400m/14-384": _SIGLIP
    | dict(size=384, patch=14, width=1152, depth=27, heads=16, kv_heads=16, head_dim=72, mlp_width=4304),
    "eva-g/14": _EVA
    | dict(size=224, patch=14, width=1408, depth=39, heads=16, kv_heads=16, head_dim=88, mlp_width=6144),
    "dinov2-L/14": _DINOV2 | _L14 | dict(size=518),
    "dinov2-g/14": _DINOV2
    | dict(size=518, patch=14, width=1536, depth=40, heads=24, kv_heads=24, head_dim=64, mlp_width=4096)
    | dict(activation="silu", gated=True),
}


def sincos_2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, float32 [rows * columns, width] (MoCo v3; big_vision/models/vit.py)."""
    y, x = np.mgrid[:rows, :columns]
    frequency = 10_000.0 ** (-np.arange(width // 4) / (width // 4 - 1))
    y, x = (np.outer(axis.ravel(), frequency) for axis in (y, x))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


class Stem(nn.Module):
    """Pixels [B, H, W, 3] to patch embeddings [B, H / patch, W / patch, D].

    'patch': one linear map of each patch (Dosovitskiy et al. 2021). 'conv': 3x3 convolutions of stride 2, each
    with norm and GELU, then a 1x1 one (Xiao et al. 2021): a far better start for small models and data.
    """

    kind: str
    patch: int
    width: int
    bias: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "patch":
            b, h, w, c = x.shape
            p = self.patch
            x = x[:, : h // p * p, : w // p * p]  # SigLIP: 27 patches of 14 in 384 pixels, 6 left over
            x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h // p, w // p, p * p * c)
        elif self.kind == "conv":
            stages = self.patch.bit_length() - 1
            if 2**stages != self.patch:
                raise UserError(f"stem='conv' halves the picture; patch={self.patch} is no power of two.")
            for i in range(stages):
                width = self.width // 2 ** (stages - i)
                x = nn.Conv(
                    width, (3, 3), (2, 2), dtype=self.dtype, param_dtype=self.param_dtype, name=f"conv_{i}"
                )(x)
                x = nn.gelu(Norm("layer", 1e-6, self.param_dtype, name=f"norm_{i}")(x))
        else:
            raise UserError(f"stem: {self.kind!r} is neither 'patch' nor 'conv'.")
        return Linear(self.width, self.bias, self.dtype, self.param_dtype, name="embed")(x)


class AttentionPool(BlockShape):
    """SigLIP's head: one learned query attends to all tokens, then a feed-forward. [B, N, D] -> [B, 1, D]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]), self.param_dtype)
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x, _ = Attention(**fields_of(self, Attention), name="attention")(probe, x)
        normed = Norm(self.norm, self.norm_eps, self.param_dtype, name="norm")(x)
        mlp = feed_forward(self)
        return x + mlp(normed)


class ViT(BlockShape):
    """Pictures uint8 [B, M, H, W, 3] -> features [B, M, N, D].

    size, patch: pixels. width, depth: of the transformer. stem: see Stem. class_token: a learned first token.
    registers: learned tokens after it, without positions (Darcet et al. 2024).
    pre_norm, final_norm: a norm before the first and after the last layer; final_norm 'pooled' has that norm for
        the pooled feature alone, and `pool` 'none' and 'all' give the last layer's features as they are (Idefics).
    position: 'learned' or 'sincos2d'.
    layer: which hidden state is the feature, an index into those of `transformers`: 0 enters the first layer, k
        leaves the k-th, -1 the last (after final_norm if there is one), -2 the one before (LLaVA).
    pool: 'none' for all patch tokens (class token and registers dropped), 'all' with these, 'cls', 'mean', or
        'map' (attention pooling).
    mean, std: of the pixels, each scaled to [0, 1].
    """

    size: Count
    patch: Count
    width: Count
    depth: Natural
    stem: Literal["patch", "conv"]
    stem_bias: bool
    class_token: bool
    registers: Natural
    pre_norm: bool
    final_norm: bool | Literal["pooled"]
    position: Literal["learned", "sincos2d"]
    layer: int
    pool: Literal["none", "all", "cls", "mean", "map"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    remat: bool
    scan: bool

    def __post_init__(self):
        if not -self.depth - 1 <= self.layer <= self.depth:
            raise UserError(
                f"layer: {self.layer}; of {self.depth} layers it is {-self.depth - 1} to {self.depth}."
            )
        if self.size < self.patch:
            raise UserError(f"size: {self.size} pixels are less than one patch of {self.patch}.")
        if self.rope_theta or self.alibi:
            raise UserError(f"rope_theta, alibi: this encoder's positions are {self.position!r}; set 0 and False.")
        if self.position == "sincos2d" and (self.width % 4 or self.width < 8):
            raise UserError(f"width: {self.width}; position='sincos2d' takes multiples of 4 from 8 on.")
        super().__post_init__()

    def medium_shape(self) -> tuple[int, ...]:
        """Shape of one medium, [H, W, 3]."""
        return self.size, self.size, 3

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        def norm(name, x):
            return Norm(self.norm, self.norm_eps, self.param_dtype, name=name)(x)

        b, m = pixels.shape[:2]
        x = self._tokens(pixels.reshape(b * m, *pixels.shape[2:]))
        if self.pre_norm:
            x = norm("norm_in", x)
        block = Block(**fields_of(self, Block), parent=None)
        layers = stacked(self, "layers", block, self.depth, x[:1])
        wanted = range(self.depth + 1)[self.layer]  # layers after the wanted one are kept, never run
        layers = jax.tree.map(lambda leaf: leaf[:wanted], layers)
        x, _ = run(
            lambda x, params: (block.apply({"params": params}, x)[0], None),
            x,
            layers,
            remat=self.remat,
            scan=self.scan,
        )
        if self.final_norm:
            normed = norm("norm_out", x)
            if wanted == self.depth and (self.final_norm != "pooled" or self.pool not in ("none", "all")):
                x = normed
        x = self._pool(x)
        return x.reshape(b, m, *x.shape[1:])

    def _tokens(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, N, D] with class token, positions and registers."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        x = ((pixels.astype(jnp.float32) / 255 - mean) / std).astype(self.dtype)
        x = Stem(self.stem, self.patch, self.width, self.stem_bias, self.dtype, self.param_dtype, name="stem")(x)
        b, rows, columns, d = x.shape
        x = x.reshape(b, rows * columns, d)
        init = nn.initializers.normal(0.02)

        def learned(name, count):
            tokens = self.param(name, init, (1, count, d), self.param_dtype).astype(x.dtype)
            return jnp.broadcast_to(tokens, (b, count, d))

        if self.class_token:
            x = jnp.concatenate([learned("class_token", 1), x], axis=1)
        if self.position == "learned":
            x = x + self.param("position_embedding", init, x.shape[1:], self.param_dtype).astype(x.dtype)
        elif self.position == "sincos2d":
            table = sincos_2d(rows, columns, d)
            table = np.concatenate([np.zeros((x.shape[1] - len(table), d), np.float32), table])
            x = x + table.astype(x.dtype)
        else:
            raise UserError(f"position: {self.position!r} is neither 'learned' nor 'sincos2d'.")
        if self.registers:
            first = int(self.class_token)
            x = jnp.concatenate([x[:, :first], learned("registers", self.registers), x[:, first:]], axis=1)
        return x

    def _pool(self, x: jax.Array) -> jax.Array:
        patches = x[:, self.class_token + self.registers :]
        if self.pool in ("none", "all"):
            return patches if self.pool == "none" else x
        if self.pool == "cls" and self.class_token:
            return x[:, :1]
        if self.pool == "mean":
            return patches.mean(1, keepdims=True)
        if self.pool == "map":
            return AttentionPool(**fields_of(self, AttentionPool), name="pool_map")(patches)
        raise UserError(
            f"pool: {self.pool!r} is none of 'none', 'all', 'mean', 'map', nor 'cls' with a class token."
        )
