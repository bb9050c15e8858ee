"""Rotary positions and local layers, as the config.json of transformers 4 and 5 state them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmjax.hub.family import Json
from mmjax.hub.tensors import CheckpointError, shown

_LAYERS = {"local": "sliding_attention", "global": "full_attention"}


def rope_of(c: Json, theta: float = 10_000.0) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) of our spec. theta: what config.json means if it says none.

    Raises:
      CheckpointError: a scaling that is not known here.
    """
    rope = rope_keys(c)
    return float(rope.get("rope_theta") or c.get("rope_theta") or theta), scaling_of(rope, c)


def rope_keys(c: Json) -> Json:
    """What of config.json `c` says how positions turn: `rope_scaling` if there is one, then nothing of
    `rope_parameters` counts (transformers 5.23, modeling_rope_utils.py, convert_rope_params_to_dict)."""
    return c.get("rope_scaling") or c.get("rope_parameters") or {}


def scaling_of(rope: Json, c: Json) -> dict[str, Any] | None:
    """Our rope_scaling for a `rope_scaling` or `rope_parameters` of config.json `c`."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return dict(type=kind, factor=float(rope["factor"]))
    if kind not in ("llama3", "yarn"):
        raise CheckpointError(f"config.json: rotary positions of type {kind!r} are not known here.")
    key = "original_max_position_embeddings"
    original = c.get(key) or rope.get(key) or c["max_position_embeddings"]
    scaling = {"type": kind, key: original}
    if kind == "llama3":
        return scaling | {name: float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    scaling["factor"] = float(rope.get("factor") or c["max_position_embeddings"] / original)
    scaling |= {
        n: rope[n] for n in ("beta_fast", "beta_slow", "attention_factor", "truncate") if rope.get(n) is not None
    }
    one, all_dims = rope.get("mscale"), rope.get("mscale_all_dim")
    if one and all_dims and "attention_factor" not in scaling:
        log = 0.1 * math.log(max(scaling["factor"], 1.0))
        scaling["attention_factor"] = (one * log + 1) / (all_dims * log + 1)
    return scaling


def rope_config(full: Json) -> dict[str, Any]:
    """config.json's keys of both generations for a spec's rope_theta, rope_scaling and rope_fraction."""
    theta, scaling = full["rope_theta"], rope_parameters(full["rope_scaling"])
    part = {} if full["rope_fraction"] == 1 else dict(partial_rotary_factor=full["rope_fraction"])
    return dict(
        rope_parameters=dict(rope_type="default", rope_theta=theta) | scaling | part,
        rope_theta=theta,
        rope_scaling=scaling or None,
        **part,
    )


def rope_parameters(scaling: Json | None) -> dict[str, Any]:
    """Our rope_scaling under Hugging Face's names."""
    return {"rope_type" if key == "type" else key: value for key, value in (scaling or {}).items()}


def layers_of(types: Sequence[str], window: int | None) -> dict[str, Any]:
    """sliding_window and attention_pattern of our spec, for `layer_types` of config.json.

    Raises:
      CheckpointError: a kind of layer that is not known here, or a local one without a window.
    """
    ours = {theirs: name for name, theirs in _LAYERS.items()}
    if unknown := sorted(set(types) - set(ours)):
        raise CheckpointError(
            f"config.json: layer_types has {shown([str(name) for name in unknown])}; known: {', '.join(ours)}."
        )
    pattern = [ours[kind] for kind in types]
    if "local" not in pattern:
        return dict(sliding_window=0, attention_pattern=["global"])
    if not window:
        raise CheckpointError("config.json: layer_types has sliding_attention, but there is no sliding_window.")
    size = len(pattern)
    period = next(p for p in range(1, size + 1) if all(pattern[i] == pattern[i % p] for i in range(size)))
    return dict(sliding_window=window, attention_pattern=pattern[:period])


def layer_types(full: Json) -> list[str]:
    """`layer_types` of config.json for a spec."""
    pattern = full["attention_pattern"]
    return [_LAYERS[pattern[i % len(pattern)]] for i in range(full["depth"])]
