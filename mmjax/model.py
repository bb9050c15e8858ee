"""MultimodalLM: encode, project, fuse, decode.

Its parts are Linen modules; the composition itself is pure functions of `params`, a nested dict
`{'encoders': {'image': ...}, 'projectors': {'image': ...}, 'backbone': ...}`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones.decoder import Decoder, empty_cache
from mmjax.build import build, section
from mmjax.errors import UserError
from mmjax.nn.masks import attention_mask, cross_mask, steps
from mmjax.typed import check_types
from mmjax.types import Batch, Cache, Media, Output


@dataclasses.dataclass(frozen=True, eq=False)  # told apart by identity: a static argument of jit
class MultimodalLM:
    """encoders and projectors by modality name; fusion 'splice' puts media tokens into the sequence, 'xattn'
    lets the backbone's gated cross-attention look at them."""

    encoders: Mapping[str, nn.Module]
    projectors: Mapping[str, nn.Module]
    backbone: Decoder
    fusion: str

    @property
    def splices(self) -> bool:
        """Whether projected tokens stand in the sequence."""
        return self.fusion == "splice"

    @functools.cached_property
    def text_span(self) -> int:
        """Tokens that a picture takes in the text: its projected ones, or 1 where the text marks its place."""
        return self.tokens_per_medium().get("image", 1) if self.splices else 1

    def init(self, rng: jax.Array, media: Mapping[str, Media] | None = None) -> dict[str, Any]:
        """Parameters from scratch."""
        media = media or self._example()
        keys = iter(jax.random.split(rng, 2 * len(self.encoders) + 1))
        params: dict[str, Any] = {"encoders": {}, "projectors": {}}
        tokens = {}
        for name, encoder in self.encoders.items():
            features, variables = encoder.init_with_output(next(keys), _first(media[name].values))
            params["encoders"][name] = variables["params"]
            tokens[name], variables = self.projectors[name].init_with_output(next(keys), features)
            params["projectors"][name] = variables["params"]
        seen = _flat(tokens) if self.fusion == "xattn" else None
        params["backbone"] = self.backbone.init(next(keys), seen, method="initialise")["params"]
        return params

    def encode(self, params: Mapping[str, Any], media: Mapping[str, Media]) -> dict[str, jax.Array]:
        """Each modality's projected tokens [B, M, K, D]."""
        tokens = {}
        for name, medium in media.items():
            features = self.encoders[name].apply({"params": params["encoders"][name]}, medium.values)
            tokens[name] = self.projectors[name].apply({"params": params["projectors"][name]}, features)
            if medium.index is not None:
                tokens[name] = jnp.take(tokens[name][0], medium.index, axis=0)
        return tokens

    def apply(self, params: Mapping[str, Any], batch: Batch) -> Output:
        """Hidden states of every token of the batch; token t's predict token t + 1."""
        tokens = self.encode(params, batch.media)
        step = steps(batch.causal)
        hidden, _, _ = self._backbone(
            params,
            self._embed(params, batch, tokens),
            positions=batch.positions,
            mask=attention_mask(step, batch.segments, step, batch.segments),
            **self._cross(batch, tokens),
        )
        return Output(hidden=hidden)

    def embed(self, params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
        """tokens int32 [...] -> [..., D]."""
        return self._backbone(params, tokens, method="embed")

    def logits(self, params: Mapping[str, Any], hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> float32 [..., vocab]."""
        return self._backbone(params, hidden, method="logits")

    def cache(self, batch: int, cells: int) -> Cache:
        """An empty cache for `batch` rows of up to `cells` tokens."""
        return empty_cache(self.backbone, batch, cells)

    def prefill(self, params: Mapping[str, Any], batch: Batch, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads prompts, padded on the right, into an empty cache. -> hidden [B, T, D], the cache."""
        tokens = self.encode(params, batch.media)
        cross = self._cross(batch, tokens)
        x = self._embed(params, batch, tokens)
        hidden, cache, media_kv = self._extend(
            params, x, batch.segments, steps(batch.causal), batch.positions, cache, **cross
        )
        if cross:
            # Every later token looks where the prompt's last one does.
            last = jnp.maximum((batch.segments > 0).sum(1) - 1, 0)
            mask = jnp.take_along_axis(cross["media_mask"], last[:, None, None], axis=1)
            cache = cache.replace(cross={"media_kv": media_kv, "media_mask": mask})
        return hidden, cache

    def decode(self, params: Mapping[str, Any], tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The next tokens of each row. tokens: int32 [B, T] -> hidden [B, T, D], the cache."""
        x, more = self.embed(params, tokens), 1 + jnp.arange(tokens.shape[1])
        step, position = (cells.max(1, keepdims=True) + more for cells in (cache.steps, cache.positions))
        hidden, cache, _ = self._extend(params, x, jnp.ones_like(tokens), step, position, cache, **cache.cross)
        return hidden, cache

    def tokens_per_medium(self) -> dict[str, int]:
        """K of each modality: how many projected tokens one medium becomes. No computation runs."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        tokens = jax.eval_shape(self.encode, params, self._example())
        return {name: t.shape[2] for name, t in tokens.items()}

    def _example(self) -> dict[str, Media]:
        """One empty medium of each modality."""
        return {
            name: Media(_empty(encoder.medium_shape()), None, None, None)
            for name, encoder in self.encoders.items()
        }

    def _backbone(self, params, *args, method=None, **kwargs):
        return self.backbone.apply({"params": params["backbone"]}, *args, method=method, **kwargs)

    def _embed(self, params, batch: Batch, tokens: Mapping[str, jax.Array]) -> jax.Array:
        """Embedded text with each media token put where `slot` says."""
        x = self.embed(params, batch.tokens)
        if self.fusion == "splice":
            for name, media_tokens in tokens.items():
                slot = batch.media[name].slot
                flat = _flat({name: media_tokens})
                at_slot = jnp.take_along_axis(flat, jnp.maximum(slot, 0)[:, :, None], axis=1)
                x = jnp.where(slot[:, :, None] >= 0, at_slot.astype(x.dtype), x)
        return x

    def _cross(self, batch: Batch, tokens: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        if self.fusion != "xattn":
            return {}
        if not tokens:
            raise UserError(
                "fusion='xattn': the batch has no media to attend to. Rows without a picture have empty slots: "
                "data.media.slots is 1 at least."
            )
        masks = [cross_mask(batch.media[n].visible, batch.media[n].valid, t.shape[2]) for n, t in tokens.items()]
        return {"media": _flat(tokens), "media_mask": jnp.concatenate(masks, axis=-1)}

    def _extend(self, params, x, segments, step, positions, cache: Cache, **cross):
        """Runs the backbone over x, writing its keys, values and whereabouts to the cache."""

        def put(cells, new):
            return jax.lax.dynamic_update_slice(cells, new.astype(cells.dtype), (0, cache.index))

        real = segments > 0
        scalar = positions.max(-1) if positions.ndim == 3 else positions
        cache = cache.replace(
            segments=put(cache.segments, segments),
            steps=put(cache.steps, jnp.where(real, step, 0)),
            positions=put(cache.positions, jnp.where(real, scalar, 0)),
        )
        hidden, (keys, values), media_kv = self._backbone(
            params,
            x,
            positions=positions,
            mask=attention_mask(step, segments, cache.steps, cache.segments),
            cache=cache,
            **cross,
        )
        return hidden, cache.replace(keys=keys, values=values, index=cache.index + x.shape[1]), media_kv


def _first(values: Any) -> Any:
    """The first medium of the first row."""
    return jax.tree.map(lambda leaf: leaf[:1, :1], values)


def _empty(shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]) -> Any:
    """One medium of one row, or of each of its arrays, that is all zeros."""
    if isinstance(shape, Mapping):
        return {name: _empty(one) for name, one in shape.items()}
    return jnp.zeros((1, 1, *shape), jnp.uint8)


def _flat(tokens: Mapping[str, jax.Array]) -> jax.Array:
    """All media tokens of a row, [B, sum of M * K, D]."""
    return jnp.concatenate([t.reshape(t.shape[0], -1, t.shape[-1]) for t in tokens.values()], axis=1)


# What a part may say of its own dtypes; as for config.Precision, which is for all parts.
DTYPES = {"dtype": Literal["float32", "bfloat16", "float16"], "param_dtype": Literal["float32"]}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A config's `model` section: specs of encoders and projectors by name of the medium, of the backbone, and how
    media enter it."""

    encoders: Mapping[str, Mapping[str, Any]]
    projectors: Mapping[str, Mapping[str, Any]]
    backbone: Mapping[str, Any]
    fusion: Literal["splice", "xattn"]


def make_model(spec: Mapping[str, Any], **given: Any) -> MultimodalLM:
    """The model of a config's `model` section, a ModelSpec.

    Args:
      given: dtype, param_dtype, vocab and other values that the parts take where their specs do not set them.

    Raises:
      UserError: unknown keys or parts that do not fit together.
    """
    spec = section(ModelSpec, spec, "model")
    backbone = _part(spec.backbone, "model.backbone", "backbones", "logits", **given)
    if (spec.fusion == "xattn") != (backbone.xattn is not None):
        raise UserError("model: fusion='xattn' and backbone.xattn go together; one of them is missing.")
    if spec.fusion == "xattn" and not spec.encoders:
        raise UserError("model.encoders: there are none, and fusion='xattn' looks at what they make.")
    if set(spec.encoders) != set(spec.projectors):
        raise UserError(
            f"model: encoders {sorted(spec.encoders)} and projectors {sorted(spec.projectors)} differ."
        )
    encoders = {
        n: _part(s, f"model.encoders.{n}", "encoders", "medium_shape", **given) for n, s in spec.encoders.items()
    }
    projectors = {
        n: _part(s, f"model.projectors.{n}", "projectors", "apply", width=backbone.width, **given)
        for n, s in spec.projectors.items()
    }
    return MultimodalLM(encoders, projectors, backbone, spec.fusion)


def _part(spec: Any, where: str, room: str, method: str, **given: Any) -> Any:
    """A part of the model, which has the method that only such a part has."""
    if isinstance(spec, Mapping):
        check_types(spec, DTYPES, where)
    made = build(spec, where, room=room, **given)
    if not hasattr(made, method):
        raise UserError(f"{where}.type: {spec['type']} is no such part: it has no {method!r}.")
    return made
