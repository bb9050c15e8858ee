"""DINOv2, with registers and without: config.json and name tables (transformers, models/dinov2)."""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import KEEP, Row, fused, patches, reshape, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.vision import linear, norm, vit_config, vit_spec

_DEFAULTS = dict(
    image_size=224,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
)


def _mlp_width(width: int, ratio: int, gated: bool) -> int:
    """Of a gated feed-forward two thirds, in multiples of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _spec(variant: str, c: Json, **more: Any) -> dict[str, Any]:
    c = {**_DEFAULTS, **c}
    gated = c.get("use_swiglu_ffn", False)
    c["intermediate_size"] = _mlp_width(c["hidden_size"], c["mlp_ratio"], gated)
    if gated:
        c["hidden_act"] = "silu"
    return vit_spec(
        variant,
        c,
        {},
        gated=gated,
        qkv_bias=c.get("qkv_bias", True),
        layer_scale=c.get("layerscale_value", 1.0),
        **more,
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    width, hidden, gated = full["width"], full["mlp_width"], full["gated"]
    ratio = round(hidden / width * (1.5 if gated else 1))
    if _mlp_width(width, ratio, gated) != hidden:
        raise CheckpointError(f"DINOv2 has no feed-forward of {hidden} hidden units at a width of {width}.")
    found = vit_config(spec) | dict(
        mlp_ratio=ratio,
        use_swiglu_ffn=gated,
        qkv_bias=full["qkv_bias"],
        layerscale_value=full["layer_scale"],
    )
    found.pop("intermediate_size")
    if gated:
        found.pop("hidden_act")
    return found


def _rows(spec: Json) -> list[Row]:
    full = complete(spec)
    width, hidden = full["width"], full["mlp_width"]
    if full["gated"]:
        mlp = [
            Row(("mlp/gate/kernel", "mlp/up/kernel"), "mlp.weights_in.weight", fused(hidden, hidden)),
            Row(("mlp/gate/bias", "mlp/up/bias"), "mlp.weights_in.bias", fused(hidden, hidden, then=KEEP)),
            *linear("mlp/down", "mlp.weights_out"),
        ]
    else:
        mlp = [*linear("mlp/up", "mlp.fc1"), *linear("mlp/down", "mlp.fc2")]
    layer = [
        *norm("attention_norm", "norm1"),
        *(row for n in ("query", "key", "value") for row in linear(f"attention/{n}", f"attention.attention.{n}")),
        *linear("attention/out", "attention.output.dense"),
        Row("attention_layer_scale", "layer_scale1.lambda1"),
        *norm("mlp_norm", "norm2"),
        *mlp,
        Row("mlp_layer_scale", "layer_scale2.lambda1"),
    ]
    positions = (full["size"] // full["patch"]) ** 2 + 1
    return [
        Row("stem/embed/kernel", "embeddings.patch_embeddings.projection.weight", patches(full["patch"])),
        Row("stem/embed/bias", "embeddings.patch_embeddings.projection.bias"),
        Row("class_token", "embeddings.cls_token"),
        Row("registers", "embeddings.register_tokens"),
        Row(
            "position_embedding",
            "embeddings.position_embeddings",
            reshape((positions, width), (1, positions, width)),
        ),
        *rows_under("layers/", "encoder.layer.*.", layer),
        *norm("norm_out", "layernorm"),
    ]


_PROJECTIONS = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}
# How transformers 5 calls them in memory.
IN_MEMORY = tuple(
    (rf"(\bencoder\.layer\.\d+\.attention)\.{new}\.", rf"\1.{old}.") for new, old in _PROJECTIONS.items()
)
_COMMON = dict(
    rows=_rows,
    part="encoders/image",
    # A classifier's file has the encoder one level down.
    renames=((r"^dinov2(_with_registers)?\.", ""), *IN_MEMORY),
    aside=(r"^embeddings\.mask_token$", r"^layernorm\.", r"^classifier\."),
    unwritten=("use_mask_token",),
)
DINOV2 = Family(
    model_type="dinov2",
    architecture="Dinov2Model",
    spec=lambda c: _spec("dinov2", {"patch_size": 14, **c}),
    config=lambda spec: _config(spec) | dict(use_mask_token=False),
    **_COMMON,
)
DINOV2_REGISTERS = Family(
    model_type="dinov2_with_registers",
    architecture="Dinov2WithRegistersModel",
    spec=lambda c: _spec("dinov2_reg", {"patch_size": 16, **c}, registers=c.get("num_register_tokens", 4)),
    config=lambda spec: _config(spec) | dict(num_register_tokens=complete(spec)["registers"]),
    **_COMMON,
)
