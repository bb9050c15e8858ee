"""Vision families: config.json and name tables of image encoders."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import KEEP, Row, T, patches, reshape, rows_under
from mmjax.hub.text import attention

# Ours -> what CLIP, SigLIP and their descendants call it.
_KEYS = {
    "size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}
_CLIP_DEFAULTS = dict(
    image_size=224,
    patch_size=32,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
)
_SIGLIP_DEFAULTS = _CLIP_DEFAULTS | dict(patch_size=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")


def _spec(variant: str, c: Json, defaults: Json, **more: Any) -> dict[str, Any]:
    c = {**defaults, **c}
    return dict(
        type="encoders.vit.ViT",
        variant=variant,
        **{ours: c[theirs] for ours, theirs in _KEYS.items()},
        kv_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        activation=family.activation(c["hidden_act"]),
        layer=-1,
        **more,
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in _KEYS.items()} | dict(
        hidden_act=family.ACTIVATIONS[full["activation"]], num_channels=3
    )


def _layer() -> list[Row]:
    def linear(ours: str, theirs: str) -> list[Row]:
        return [Row(f"{ours}/kernel", f"{theirs}.weight", T), Row(f"{ours}/bias", f"{theirs}.bias")]

    return [
        *attention(out="out_proj"),
        *norm("attention_norm", "layer_norm1"),
        *norm("mlp_norm", "layer_norm2"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def rows(spec: Json) -> list[Row]:
    """CLIP's and SigLIP's towers, names below `vision_model.`."""
    full = complete(spec)
    patch, width = full["patch"], full["width"]
    stem = [
        Row("stem/embed/kernel", "embeddings.patch_embedding.weight", patches(patch)),
        Row("stem/embed/bias", "embeddings.patch_embedding.bias"),
        Row("class_token", "embeddings.class_embedding", reshape((1, 1, width), (width,))),
        Row("position_embedding", "embeddings.position_embedding.weight", KEEP),
    ]
    pool = [
        Row("probe", "probe"),
        *norm("norm", "layernorm"),
        Row("mlp/up/kernel", "mlp.fc1.weight", T),
        Row("mlp/up/bias", "mlp.fc1.bias"),
        Row("mlp/down/kernel", "mlp.fc2.weight", T),
        Row("mlp/down/bias", "mlp.fc2.bias"),
    ]
    return [
        *stem,
        *norm("norm_in", "pre_layrnorm"),
        *rows_under("layers/", "encoder.layers.*.", _layer()),
        *norm("norm_out", "post_layernorm"),
        *rows_under("pool_map/", "head.", pool),
    ]


def _tower(c: Json) -> Json:
    """The vision part of a config.json, be it of the tower or of the whole two-tower model."""
    return c.get("vision_config", c)


_TEXT_TOWER = (r"^text_model\.", r"^text_projection\.", r"^visual_projection\.", r"^logit_(scale|bias)$")
_BUFFERS = (r"embeddings\.position_ids$",)


def _clip(model_type: str, architecture: str, under: str) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        spec=lambda c: _spec("clip", _tower(c), _CLIP_DEFAULTS),
        config=_config,
        rows=lambda spec: rows_under("", under, rows(spec)),
        part="encoders/image",
        renames=((r"^(?=embeddings\.|encoder\.|pre_layrnorm|post_layernorm|head\.)", "vision_model."),),
        ignored=_TEXT_TOWER + _BUFFERS,
    )


def _siglip(model_type: str, architecture: str, under: str) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        spec=lambda c: _spec("siglip", _tower(c), _SIGLIP_DEFAULTS),
        config=_config,
        rows=lambda spec: rows_under("", under, rows(spec)),
        part="encoders/image",
        renames=((r"^(?=embeddings\.|encoder\.|pre_layrnorm|post_layernorm|head\.)", "vision_model."),),
        ignored=_TEXT_TOWER + _BUFFERS,
    )


CLIP = _clip("clip", "CLIPModel", "vision_model.")
CLIP_VISION = _clip("clip_vision_model", "CLIPVisionModel", "vision_model.")
SIGLIP = _siglip("siglip", "SiglipModel", "vision_model.")
SIGLIP_VISION = _siglip("siglip_vision_model", "SiglipVisionModel", "vision_model.")
