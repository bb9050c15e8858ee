"""What the tables of Phi, OPT, GPT-NeoX and MPT share."""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Json, complete
from mmjax.hub.positions import rope_keys
from mmjax.hub.table import Row, T
from mmjax.hub.tensors import CheckpointError

KEYS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "layer_norm_eps",
}
QKV = ("query", "key", "value")


def linear(ours: str, theirs: str) -> list[Row]:
    """A Linear, with a bias where the model has one."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", T), Row(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def spec_by(variant: str, c: Json, keys: Json, **more: Any) -> dict[str, Any]:
    """A backbone's spec from config.json, of whose keys `keys` gives the names: ours -> theirs."""
    return dict(
        type="backbones.decoder.Decoder",
        variant=variant,
        **{ours: c[theirs] for ours, theirs in keys.items()},
        head_dim=c[keys["width"]] // c[keys["heads"]],
        xattn=None,
        **more,
    )


def config_by(spec: Json, keys: Json) -> dict[str, Any]:
    """config.json's `keys` for a backbone. Raises CheckpointError where heads do not split the width."""
    full = complete(spec)
    if full["head_dim"] * full["heads"] != full["width"]:
        raise CheckpointError(
            f"heads={full['heads']} of head_dim={full['head_dim']} do not split the width, {full['width']}."
        )
    return {theirs: full[ours] for ours, theirs in keys.items()}


def refuse(c: Json, allowed: Json) -> None:
    """Raises CheckpointError where config.json has another value than the one that the model here has."""
    for key, value in allowed.items():
        if c.get(key, value) != value:
            raise CheckpointError(f"config.json: {key}={c[key]!r} is not known here, only {value!r}.")


def rope_fraction(c: Json, default: float) -> float:
    """The part of a head that rotates; transformers 5 keeps it among the rope parameters."""
    rope = rope_keys(c)
    return rope.get("partial_rotary_factor", c.get("partial_rotary_factor", default))
