"""The decoder-only language model: Llama, Qwen, Gemma, Phi, OPT, GPT-NeoX and MPT are settings of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.nn.block import PLAIN, Block, BlockShape, fields_of
from mmjax.nn.linear import Linear, matmul
from mmjax.nn.masks import window_mask
from mmjax.nn.norm import Norm
from mmjax.nn.rope import rope_frequencies
from mmjax.nn.stack import run, stacked
from mmjax.nn.xattn import GatedCrossBlock
from mmjax.sharding import constrain
from mmjax.typed import Count, Natural, NotNegative, Range, check_keys, check_types, hints_of
from mmjax.types import Cache

# What makes a family; sizes (vocab, width, depth, heads, kv_heads, head_dim, mlp_width) come from the config.
_LLAMA = PLAIN | dict(
    activation="silu",
    gated=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    norm="rms",
    norm_eps=1e-5,
    rope_theta=10_000.0,
    sliding_window=0,
    attention_pattern=("global",),
    local_rope_theta=0.0,
    additional_vocab=0,
    max_positions=0,
    position_offset=0,
    embed_scale=1.0,
    tied=False,
    head_bias=False,
    logit_softcap=0.0,
)
_GEMMA = {**_LLAMA, "activation": "gelu_tanh", "norm": "rms1", "norm_eps": 1e-6, "tied": True}
_GEMMA2 = {**_GEMMA, "post_norm": True, "query_scale": 256**-0.5}
_CLASSIC = dict(activation="relu", gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norm="layer")
VARIANTS = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4096, "attention_pattern": ("local",)},
    "qwen2": {**_LLAMA, "qkv_bias": True, "norm_eps": 1e-6, "rope_theta": 1e6},
    "qwen3": {**_LLAMA, "qk_norm": "rms", "norm_eps": 1e-6, "rope_theta": 1e6},
    "gemma": _GEMMA,
    "gemma2": {
        **_GEMMA2,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "sliding_window": 4096,
        "attention_pattern": ("local", "global"),
    },
    "gemma3": {
        **_GEMMA2,
        "qk_norm": "rms1",
        "sliding_window": 1024,
        "attention_pattern": ("local",) * 5 + ("global",),
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
    },
    "phi": {
        **_LLAMA,
        **_CLASSIC,
        "activation": "gelu_tanh",
        "rope_fraction": 0.4,
        "parallel": True,
        "shared_norm": True,
        "head_bias": True,
    },
    "opt": {
        **_LLAMA,
        **_CLASSIC,
        "rope_theta": 0.0,
        "max_positions": 2048,
        "position_offset": 2,
        "tied": True,
    },
    "neox": {**_LLAMA, **_CLASSIC, "activation": "gelu", "rope_fraction": 0.25, "parallel": True},
    "mpt": {
        **_LLAMA,
        "activation": "gelu",
        "gated": False,
        "norm": "layer_nobias",
        "rope_theta": 0.0,
        "alibi": True,
        "tied": True,
    },
}
VARIANTS["llama-7b"] = VARIANTS["llama"] | dict(
    vocab=32_000, width=4096, depth=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11_008
)
VARIANTS["llama-13b"] = VARIANTS["llama"] | dict(
    vocab=32_000, width=5120, depth=40, heads=40, kv_heads=40, head_dim=128, mlp_width=13_824
)


class Decoder(BlockShape):
    """Embedding, `depth` blocks, final norm, head; and gated cross-attention among the blocks if asked for.

    vocab, width, depth: sizes. attention_pattern: 'local' or 'global' for each layer, repeated over the depth;
    'local' layers see the last `sliding_window` positions, their own among them, and rotate by
    local_rope_theta, unscaled, if that is not 0.
    additional_vocab: how many tokens at the vocabulary's end have parameters of their own, to be trained while the
    others stay as they are (Idefics).
    max_positions: learned absolute positions, 0 for none; position_offset: rows of their table before the first
    (OPT: 2). embed_scale: factor on the embeddings (Gemma: sqrt(width)). tied: the head is the embedding table.
    logit_softcap: 0 for none.
    xattn: None, or fields of GatedCrossBlock that differ from the blocks', with `every` (one such block before
    each `every`-th layer) and `first` (the layer that the first of them stands before); `gate` is 'scalar' if
    not given.
    remat, scan: see nn/stack.py.
    """

    vocab: Count
    width: Count
    depth: Count
    sliding_window: Natural
    attention_pattern: Sequence[str]
    local_rope_theta: NotNegative
    additional_vocab: Natural
    max_positions: Natural
    position_offset: Natural
    embed_scale: float
    tied: bool
    head_bias: bool
    logit_softcap: NotNegative
    xattn: Mapping[str, Any] | None
    remat: bool
    scan: bool

    def __post_init__(self):
        if self.additional_vocab >= self.vocab:
            raise UserError(f"additional_vocab: {self.additional_vocab} is not below vocab={self.vocab}.")
        if self.xattn is not None:
            _check_cross(self.xattn, self.depth)
        super().__post_init__()

    # Linen's `setup`, not `compact`: the table and the layers serve several methods.
    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        old, new = self.vocab - self.additional_vocab, self.additional_vocab
        self.embedding = self.param("embedding", init, (old, self.width), self.param_dtype)
        if new:
            shape = (new, self.width)
            self.additional_embedding = self.param("additional_embedding", init, shape, self.param_dtype)
        if self.max_positions:
            shape = (self.position_offset + self.max_positions, self.width)
            self.position_embedding = self.param("position_embedding", init, shape, self.param_dtype)
        self.norm_out = Norm(self.norm, self.norm_eps, self.param_dtype)
        if not self.tied:
            head = functools.partial(
                Linear,
                bias=self.head_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                out_dtype=jnp.float32,
            )
            self.head = head(old)
            if new:
                self.additional_head = head(new)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        table = constrain(self.embedding, "vocab", None)  # gathered over `fsdp` first; else XLA gathers x instead
        if self.additional_vocab:
            old = len(table)
            x = jnp.take(table, jnp.minimum(tokens, old - 1), axis=0)
            new = jnp.take(self.additional_embedding, jnp.maximum(tokens - old, 0), axis=0)
            x = jnp.where((tokens < old)[..., None], x, new)
        else:
            x = jnp.take(table, tokens, axis=0)
        x = x.astype(self.dtype)
        return constrain(x * jnp.asarray(self.embed_scale, x.dtype), "batch", "seq", "embed")

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., vocab], accumulated in float32 whatever the dtype of `hidden`."""

        def tied(table):
            return matmul(hidden, table.T.astype(hidden.dtype), jnp.float32)

        logits = tied(self.embedding) if self.tied else self.head(hidden)
        if self.additional_vocab:
            new = tied(self.additional_embedding) if self.tied else self.additional_head(hidden)
            logits = jnp.concatenate([logits, new], axis=-1)
        return self.logit_softcap * jnp.tanh(logits / self.logit_softcap) if self.logit_softcap else logits

    def initialise(self, media: jax.Array | None) -> jax.Array:
        """Runs every part once, for `init`. media: [1, S, D'] features to cross-attend to, or None."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        mask = None if media is None else jnp.ones((1, 1, media.shape[1]), bool)
        hidden, _, _ = self(self.embed(tokens), positions=tokens, mask=None, media=media, media_mask=mask)
        return self.logits(hidden)

    def __call__(self, x, *, positions, mask, media=None, media_mask=None, media_kv=None, cache=None):
        """Embedded tokens to hidden states.

        Args:
          x: [B, T, D]. positions: int32 [B, T], or [B, T, C] with rope_sections.
          mask: bool [B, T, S], over the cache's cells if there is one.
          media: [B, S', D'] to cross-attend to, with media_mask bool [B, T, S'].
          media_kv: instead of media, the keys and values a former call returned.
          cache: types.Cache whose cells from `index` on receive this call's keys and values.

        Returns:
          hidden [B, T, D], the cache's new (keys, values) or None, media_kv.
        """
        if self.max_positions:
            table = self.position_embedding
            x = x + jnp.take(table, positions + self.position_offset, axis=0).astype(x.dtype)
        key_positions = cache.positions if cache else positions
        local = self._local()
        kind = self._kinds(local, mask, positions, key_positions)
        block = Block(**fields_of(self, Block), parent=None)
        layers = stacked(self, "layers", block, self.depth, x[:1, :1], positions=positions[:1, :1])

        def layer(carry, xs):
            (x, kv), (params, index, is_local) = carry, xs
            mask, rope = kind(is_local)

            def update(k, v):
                nonlocal kv
                kv = tuple(_write(full, new, index, cache.index) for full, new in zip(kv, (k, v), strict=True))
                return tuple(jax.lax.dynamic_index_in_dim(full, index, keepdims=False) for full in kv)

            seen = dict(mask=mask, positions=positions, key_positions=key_positions, rope=rope)
            x, _ = block.apply({"params": params}, x, **seen, update=update if cache else None)
            return (x, kv), None

        carry = (x, (cache.keys, cache.values) if cache else None)
        xs = (layers, jnp.arange(self.depth), jnp.asarray(local))
        if self.xattn is None:
            carry, _ = run(layer, carry, xs, remat=self.remat, scan=self.scan)
        else:
            carry, media_kv = self._interleave(layer, carry, xs, media, media_mask, media_kv)
        x, kv = carry
        return self.norm_out(x), kv, media_kv

    def _local(self) -> list[bool]:
        """Which layers are local ones."""
        pattern = self.attention_pattern
        if not pattern or set(pattern) - {"local", "global"}:
            raise UserError(f"attention_pattern: {pattern!r} is no list of 'local' and 'global'.")
        local = [pattern[i % len(pattern)] == "local" for i in range(self.depth)]
        if any(local) and not self.sliding_window:
            raise UserError("attention_pattern: a local layer wants sliding_window above 0.")
        return local

    def _kinds(self, local, mask, positions, key_positions):
        """-> function of whether a layer is local, bool [], that gives its (mask, rope)."""
        if not any(local):
            return lambda is_local: (mask, None)
        near = window_mask(mask, positions, key_positions, self.sliding_window)
        far_rope = near_rope = None
        if self.local_rope_theta:
            far_rope = rope_frequencies(self.head_dim, self.rope_theta, self.rope_fraction, self.rope_scaling)
            near_rope = rope_frequencies(self.head_dim, self.local_rope_theta, self.rope_fraction)
        if all(local):
            return lambda is_local: (near, near_rope)
        everything = jnp.ones_like(near) if mask is None else mask

        def kind(is_local):
            return jax.tree.map(lambda a, b: jnp.where(is_local, a, b), (near, near_rope), (everything, far_rope))

        return kind

    def _interleave(self, layer, carry, xs, media, media_mask, media_kv):
        """Runs groups of one gated cross-attention block and `every` layers, the last group perhaps shorter."""
        shape = {**fields_of(self, BlockShape), **PLAIN, "gate": "scalar", **self.xattn}
        shape["kv_heads"] = self.xattn.get("kv_heads", shape["heads"])
        every, first = shape.pop("every"), shape.pop("first")
        block = GatedCrossBlock(**shape, parent=None)
        groups = -(-(self.depth - first) // every)
        example = carry[0][:1, :1]
        blocks = stacked(self, "xattn", block, groups, example, media, mask=None)

        def group(carry, xs):
            (x, kv), (params, inner, cross_kv) = carry, xs
            x, cross_kv = block.apply({"params": params}, x, media, mask=media_mask, kv=cross_kv)
            carry, _ = run(layer, (x, kv), inner, remat=False, scan=self.scan)
            return carry, cross_kv

        def part(tree, start, stop):
            return jax.tree.map(lambda leaf: leaf[start:stop], tree)

        def run_groups(carry, start, stop, size):
            begin = first + start * every
            inner = jax.tree.map(
                lambda leaf: leaf.reshape(stop - start, size, *leaf.shape[1:]),
                part(xs, begin, begin + (stop - start) * size),
            )
            group_xs = (part(blocks, start, stop), inner, part(media_kv, start, stop))
            return run(group, carry, group_xs, remat=self.remat, scan=self.scan)

        carry, _ = run(layer, carry, part(xs, 0, first), remat=self.remat, scan=self.scan)
        full = (self.depth - first) // every
        carry, kvs = run_groups(carry, 0, full, every)
        if full < groups:
            carry, last = run_groups(carry, full, groups, self.depth - first - full * every)
            kvs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kvs, last)
        return carry, kvs


def _check_cross(xattn: Mapping[str, Any], depth: int) -> None:
    """Raises UserError for keys and values of `xattn` that no gated cross-attention has."""
    known = {f.name for f in dataclasses.fields(GatedCrossBlock)} - {"parent", "name", "dtype", "param_dtype"}
    check_keys(xattn, {*known, "every", "first"}, ("every", "first"), "xattn")
    places = {"every": Count, "first": Annotated[int, Range(0, depth - 1)]}
    check_types(xattn, hints_of(GatedCrossBlock) | places, "xattn")


def empty_cache(backbone: Decoder, batch: int, cells: int) -> Cache:
    """A cache for `batch` rows of up to `cells` tokens."""
    shape = (backbone.depth, batch, cells, backbone.kv_heads, backbone.head_dim)
    zeros = jnp.zeros((batch, cells), jnp.int32)
    return Cache(
        keys=jnp.zeros(shape, backbone.dtype),
        values=jnp.zeros(shape, backbone.dtype),
        segments=zeros,
        steps=zeros,
        positions=zeros,
        index=jnp.zeros((), jnp.int32),
    )


def _write(full: jax.Array, new: jax.Array, layer: jax.Array, cell: jax.Array) -> jax.Array:
    """full [L, B, S, G, D] with new [B, T, G, D] at the layer's cells from `cell` on."""
    return jax.lax.dynamic_update_slice(full, new[None].astype(full.dtype), (layer, 0, cell, 0, 0))
