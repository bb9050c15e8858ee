"""What a checkpoint's image processor does, as keys of our config."""

from __future__ import annotations

import json
import math
from typing import Any

from absl import logging
from PIL import Image

from mmjax.hub.family import Json, complete
from mmjax.hub.folder import HubFolder, read_json
from mmjax.hub.image_processor import ImageProcessor, complete_settings, made_for
from mmjax.hub.tensors import CheckpointError

IMAGE_TOKEN = "<image>"
FILES = ("processor_config.json", "preprocessor_config.json")  # a part of the first goes before the second


def read_preprocessor(folder: HubFolder) -> ImageProcessor:
    """The image processor of a folder: what `transformers` would read; without a file, one made for the encoder.

    Raises:
      CheckpointError: a class, key or value that is not known here; names the file, the key and the remedy.
    """
    model_type = folder.family.model_type
    for name in FILES:
        file = folder.path / name
        found: Any = read_json(file) if file.exists() else None
        if found is not None and name == FILES[0]:
            found = found.get("image_processor")
        if not isinstance(found, dict | None):
            raise CheckpointError(f"{file}: image_processor is {found!r}: give a JSON object.")
        if found is not None:
            return complete_settings(found, str(file), model_type)
    logging.warning("%s: has neither of %s; pictures are fitted to the encoder.", folder.path, " and ".join(FILES))
    encoder = complete(folder.spec["encoders"]["image"])
    return made_for(encoder.get("size", encoder["patch"]), folder.config)


def pixel_keys(p: ImageProcessor) -> dict[str, Any]:
    """An encoder's mean and std for pixels in [0, 1], {} where no file says them.

    The image processor's are for pixels times `rescale_factor`.

    Raises:
      CheckpointError: numbers that cannot be.
    """
    if not p.where:
        return {}
    factor = p["rescale_factor"] if p["do_rescale"] else 1
    if not _is_number(factor) or factor <= 0:
        raise p.refused("rescale_factor", "give a number above 0, such as 1/255.")
    mean, std = (
        (_colour(p, "image_mean"), _colour(p, "image_std")) if p["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    )
    if min(std) <= 0:
        raise p.refused("image_std", "give numbers above 0.")
    scale = 1 if math.isclose(255 * factor, 1, rel_tol=1e-9) else 255 * factor
    return dict(mean=tuple(value / scale for value in mean), std=tuple(value / scale for value in std))


def _colour(p: ImageProcessor, key: str) -> tuple[float, ...]:
    """A number for each channel."""
    value = [p[key]] * 3 if _is_number(p[key]) else p[key]
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise p.refused(key, "give a number for each of the three colours.")
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def media_keys(folder: HubFolder, encoder: Json, p: ImageProcessor) -> dict[str, Any]:
    """Keys of `data.media` that follow from a checkpoint. Raises CheckpointError as `read_preprocessor` does."""
    full = complete(encoder)
    # Of pictures at their native resolution, the size is a patch's.
    keys: dict[str, Any] = dict(size=full.get("size", full["patch"]), token=_image_token(folder))
    if folder.family.views:
        keys["views"] = folder.family.views(folder.config, p)
        if not p["do_resize"]:
            raise p.refused("do_resize", "pictures in tiles are resized; set it to true.")
    else:
        keys |= square_keys(p, keys["size"])
    return keys | (dict(resample=resample_name(p)) if p["do_resize"] else {})


def resample_name(p: ImageProcessor) -> str:
    """`data.media.resample`."""
    names = {int(filter): filter.name.lower() for filter in Image.Resampling}
    if not isinstance(p["resample"], int) or p["resample"] not in names:
        raise p.refused("resample", f"give one of {names}.")
    return names[p["resample"]]


def square_keys(p: ImageProcessor, size: int) -> dict[str, Any]:
    """How a picture becomes the one square that the encoder reads, of `size` pixels a side: padded to a square
    (LLaVA's own image processor), resized, cropped, each or not.

    Raises:
      CheckpointError: what comes out is no square of that size for every picture.
    """
    cropped = p["do_center_crop"]
    if cropped:
        p.check_tile("crop_size", size)
    pads = p["do_pad"] and p.name == "LlavaImageProcessor"
    if p["do_pad"] and not pads and p["pad_size"]:
        p.check_tile("pad_size", size)
    if not p["do_resize"]:
        if pads or not cropped:
            raise p.refused("do_resize", f"the encoder reads squares of {size} pixels; set it to true.")
        return dict(resize="none")
    shorter = set(p.size()) == {"shortest_edge"}
    if shorter and not cropped and not pads:
        raise p.refused("do_center_crop", "the encoder reads squares; set it to true.")
    edge = p.side("size", "shortest_edge") if shorter else p.side("size")
    if edge != size and not cropped:
        raise p.refused("size", f"the encoder reads squares of {size} pixels; set it to that.")
    keys: dict[str, Any] = dict(resize="pad" if pads else "crop" if shorter else "stretch")
    if edge != size:
        keys["edge"] = edge
    if pads:
        keys["fill"] = [int(255 * mean) for mean in (_colour(p, "image_mean") if p["image_mean"] else (0, 0, 0))]
        if not all(0 <= level <= 255 for level in keys["fill"]):
            raise p.refused("image_mean", "it is the padding's colour as well; give numbers from 0 to 1.")
    return keys


def _image_token(folder: HubFolder) -> str:
    """The name of the token that stands for a picture."""
    id = folder.config.get("image_token_id", folder.config.get("image_token_index"))
    if id is None or not (folder.path / "tokenizer.json").exists():
        return IMAGE_TOKEN
    added = json.loads((folder.path / "tokenizer.json").read_text()).get("added_tokens", [])
    return next((token["content"] for token in added if token["id"] == id), IMAGE_TOKEN)
