"""LLaVA-NeXT (1.6): LLaVA whose pictures come in tiles, with a learned vector that ends each row of them
(transformers, models/llava_next)."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.hub.family import Json, complete
from mmjax.hub.image_processor import ImageProcessor, encoder_side
from mmjax.hub.llava import LLAVA
from mmjax.hub.table import Row
from mmjax.hub.tensors import CheckpointError

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def _spec(c: Json) -> dict[str, Any]:
    spec = LLAVA.spec(c)
    encoder = complete(spec["encoders"]["image"])
    if encoder["pool"] != "none" and encoder["class_token"]:
        raise CheckpointError("config.json: tiles with class tokens ('full') make no grid.")
    spec["projectors"]["image"]["newline"] = True
    spec["backbone"]["tied"] = c.get("tie_word_embeddings", False)  # LLaVA alone looks into text_config, too
    return spec


def _views(c: Json, p: ImageProcessor) -> dict[str, Any]:
    pinpoints = c.get("image_grid_pinpoints") or PINPOINTS
    if p["image_grid_pinpoints"] != [list(pair) for pair in pinpoints]:
        raise p.refused("image_grid_pinpoints", f"config.json has {pinpoints}; set it to that.")
    p.check_tile("crop_size", encoder_side(c))
    p.check_tile("size", encoder_side(c), *(["shortest_edge"] if "shortest_edge" in p.size() else []))
    return dict(type="data.views.AnyRes", pinpoints=[list(pair) for pair in pinpoints])


LLAVA_NEXT = dataclasses.replace(
    LLAVA,
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    spec=_spec,
    rows=lambda spec: [*LLAVA.rows(spec), Row("projectors/image/newline", "image_newline")],
    views=_views,
)
