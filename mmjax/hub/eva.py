"""EVA-CLIP-g as BLIP-2 and InstructBLIP have it (transformers, models/blip_2, Blip2VisionModel)."""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Row, patches, reshape, rows_under
from mmjax.hub.vision import block, fused_attention, norm, vit_config, vit_spec

_DEFAULTS = dict(
    image_size=224,
    patch_size=14,
    hidden_size=1408,
    num_hidden_layers=39,
    num_attention_heads=16,
    intermediate_size=6144,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
)


def _config(spec: Json) -> dict[str, Any]:
    found = vit_config(spec) | dict(qkv_bias=complete(spec)["qkv_bias"])
    found.pop("num_channels")
    return found


def _rows(spec: Json) -> list[Row]:
    full = complete(spec)
    width = full["width"]
    positions = (full["size"] // full["patch"]) ** 2 + 1
    layer = [*fused_attention("self_attn.qkv", ".", width, "self_attn.projection"), *block()]
    return [
        Row("stem/embed/kernel", "embeddings.patch_embedding.weight", patches(full["patch"])),
        Row("stem/embed/bias", "embeddings.patch_embedding.bias"),
        Row("class_token", "embeddings.class_embedding"),
        Row(
            "position_embedding",
            "embeddings.position_embedding",
            reshape((positions, width), (1, positions, width)),
        ),
        *rows_under("layers/", "encoder.layers.*.", layer),
        *norm("norm_out", "post_layernorm"),
    ]


BLIP2_VISION = Family(
    model_type="blip_2_vision_model",
    architecture="Blip2VisionModel",
    # The keys have a bias too, which starts at 0 and is trained like the others.
    spec=lambda c: vit_spec("eva", c, _DEFAULTS, qkv_bias=c.get("qkv_bias", True)),
    config=_config,
    rows=_rows,
    part="encoders/image",
    aside=(r"^post_layernorm\.",),
)
