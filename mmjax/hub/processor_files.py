"""The image processor of an export: `data.media` and the encoder's colours, as `transformers` has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import logging

from mmjax.data.image import RESAMPLE
from mmjax.data.spec import MediaSpec
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.llava import strategy_of
from mmjax.hub.preprocess import FILES

_PROCESSORS = {"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor"}


def write_processor(target: Path, media: MediaSpec, encoder: Json, family: Family, image_token: str) -> bool:
    """Writes the files that AutoProcessor, or AutoImageProcessor for an encoder alone, reads -> whether it could.

    What cannot be said in them is named in a warning.

    Args:
      encoder: the section of the one that pictures go to.
    """
    whole, name = family.part == "", family.model_type
    settings = _image_processor(target, media, complete(encoder))
    tiled = settings is not None and "image_grid_pinpoints" in settings
    if settings is None or (whole and (name not in _PROCESSORS or tiled != (name == "llava_next"))):
        logging.warning(
            "%s: no %s is written: data.media of mmjax is not known as an image processor of %s. Copy that of a "
            "published checkpoint of the family, and compare its keys with data.media.",
            *(target, FILES[0], name),
        )
        return False
    (target / FILES[1]).write_text(json.dumps(settings, indent=2))
    if whole:
        full = complete(encoder)
        made = dict(
            processor_class=_PROCESSORS[name],
            image_processor=settings,
            patch_size=full["patch"],
            vision_feature_select_strategy=strategy_of(encoder),
            num_additional_image_tokens=full["class_token"] + full["registers"],
            image_token=image_token,
        )
        (target / FILES[0]).write_text(json.dumps(made, indent=2))
    return True


def _image_processor(target: Path, media: MediaSpec, encoder: Json) -> dict[str, Any] | None:
    """The image processor's config; None for views or an encoder that none is known for."""
    views = media.views or {"type": "data.views.Whole"}
    kind = views["type"].rpartition(".")[2]
    if kind not in ("Whole", "AnyRes") or "mean" not in encoder:
        return None
    edge, square = media.edge or media.size, dict(height=media.size, width=media.size)
    made = dict(
        image_processor_type="CLIPImageProcessor",
        do_resize=media.resize != "none",
        size=dict(height=edge, width=edge) if media.resize == "stretch" else dict(shortest_edge=edge),
        do_center_crop=media.resize != "stretch" or edge != media.size,
        crop_size=square,
        resample=int(RESAMPLE[media.resample]),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(encoder["mean"]),
        image_std=list(encoder["std"]),
        do_convert_rgb=True,
    )
    if kind == "AnyRes":
        made["image_processor_type"] = "LlavaNextImageProcessor"
        made |= dict(size=square, do_center_crop=True, do_pad=True)
        made["image_grid_pinpoints"] = [list(pair) for pair in views["pinpoints"]]
    if media.resize == "pad":
        made |= dict(image_processor_type="LlavaImageProcessor", do_pad=True)
        if list(media.fill) != (said := [int(255 * mean) for mean in encoder["mean"]]):
            logging.warning(
                "%s: data.media.fill=%s: image processors of transformers pad with the encoder's mean, %s.",
                *(target, list(media.fill), said),
            )
    return made
