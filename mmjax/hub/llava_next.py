"""LLaVA-NeXT (1.6): LLaVA whose pictures come in tiles, with a learned vector that ends each row of them
(transformers, models/llava_next)."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.hub.family import Json, complete
from mmjax.hub.llava import LLAVA
from mmjax.hub.preprocess import check_size
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


def _views(c: Json, p: Json) -> dict[str, Any]:
    pinpoints = c.get("image_grid_pinpoints") or p.get("image_grid_pinpoints") or PINPOINTS
    other = p.get("image_grid_pinpoints") or pinpoints
    if [list(pair) for pair in other] != [list(pair) for pair in pinpoints]:
        raise CheckpointError("image_grid_pinpoints of config.json and of the image processor differ.")
    check_size(c, p.get("crop_size") or p.get("size"))
    return dict(type="data.views.AnyRes", pinpoints=[list(pair) for pair in pinpoints])


LLAVA_NEXT = dataclasses.replace(
    LLAVA,
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    spec=_spec,
    rows=lambda spec: [*LLAVA.rows(spec), Row("projectors/image/newline", "image_newline")],
    views=_views,
)
