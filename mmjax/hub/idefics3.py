"""Idefics3 and SmolVLM: SigLIP on split pictures, a pixel shuffle with one linear map, Llama (transformers,
models/idefics3, smolvlm)."""

from __future__ import annotations

import re
from typing import Any

from mmjax.hub.family import Family, Json, complete, config_of, family_of, find_family
from mmjax.hub.image_processor import ImageProcessor, encoder_side
from mmjax.hub.table import Row, T, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS
from mmjax.hub.vision import SIGLIP_VISION

_VISION_DEFAULTS = dict(
    image_size=224,
    patch_size=32,
    hidden_size=1152,
    num_hidden_layers=12,
    num_attention_heads=16,
    intermediate_size=3072,
    layer_norm_eps=1e-6,
    hidden_act="gelu_pytorch_tanh",
)
# Idefics3 finds the position of a patch from its fraction of the picture, in float32. On a full grid that is 0, 1,
# ... for published models (26, 27 and 32 patches a side) and most others of up to 64, but not for these.
_ROUNDED = (19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62)


def _vision_spec(c: Json) -> dict[str, Any]:
    spec = SIGLIP_VISION.spec({**_VISION_DEFAULTS, **c})
    side = spec["size"] // spec["patch"]
    if side in _ROUNDED or side > 64:
        raise CheckpointError(f"config.json: on a grid of {side} patches a side, Idefics3 rounds some positions.")
    return spec


def _vision_config(spec: Json) -> dict[str, Any]:
    return {key: value for key, value in SIGLIP_VISION.config(spec).items() if key in _VISION_DEFAULTS}


def _vision(model_type: str, architecture: str) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        spec=_vision_spec,
        config=_vision_config,
        rows=lambda spec: [_renamed(row, r"^vision_model\.", "") for row in SIGLIP_VISION.rows(spec)],
        part="encoders/image",
    )


def _spec(c: Json) -> dict[str, Any]:
    text = find_family(c["text_config"], "config.json, text_config").spec(c["text_config"])
    projector = dict(
        type="projectors.mlp.MLP",
        depth=1,
        activation="gelu",
        bias=False,
        reduce="pixel_shuffle",
        factor=c.get("scale_factor", 2),
        norm="",
    )
    return dict(
        encoders=dict(image=_vision_spec(c["vision_config"])),
        projectors=dict(image=projector),
        backbone=text | dict(tied=c.get("tie_word_embeddings", False)),
        fusion="splice",
    )


def _config(spec: Json, vision: str) -> dict[str, Any]:
    return dict(
        vision_config={"model_type": vision, **_vision_config(spec["encoders"]["image"])},
        text_config=config_of(spec["backbone"]),
        scale_factor=spec["projectors"]["image"]["factor"],
        tie_word_embeddings=complete(spec["backbone"])["tied"],
    )


def _rows(spec: Json) -> list[Row]:
    encoder, backbone = spec["encoders"]["image"], spec["backbone"]
    text = rows_under("backbone/", "", family_of(backbone).rows(backbone))
    return [
        *rows_under("encoders/image/", "model.", SIGLIP_VISION.rows(encoder)),
        Row("projectors/image/linear_0/kernel", "model.connector.modality_projection.proj.weight", T),
        *(_renamed(row, r"^model\.", "model.text_model.") for row in text),
    ]


def _renamed(row: Row, pattern: str, replacement: str) -> Row:
    return Row(row.ours, tuple(re.sub(pattern, replacement, name) for name in row.theirs), row.op)


def _views(c: Json, p: ImageProcessor) -> dict[str, Any]:
    p.check_tile("max_image_size", encoder_side(c), "longest_edge")
    longest = p.side("size", "longest_edge")
    return dict(type="data.views.Split", longest=longest, split=bool(p["do_image_splitting"]))


def _family(model_type: str, architecture: str) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        spec=_spec,
        config=lambda spec: _config(spec, f"{model_type}_vision"),
        rows=_rows,
        part="",
        renames=((r"^(?=(vision_model|text_model|connector)\.)", "model."),),
        ignored=(r"position_ids$", *BUFFERS),
        views=_views,
    )


IDEFICS3_VISION = _vision("idefics3_vision", "Idefics3VisionTransformer")
SMOLVLM_VISION = _vision("smolvlm_vision", "SmolVLMVisionTransformer")
IDEFICS3 = _family("idefics3", "Idefics3ForConditionalGeneration")
SMOLVLM = _family("smolvlm", "SmolVLMForConditionalGeneration")
