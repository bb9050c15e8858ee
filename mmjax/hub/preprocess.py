"""What a checkpoint's image processor does, as keys of our config."""

from __future__ import annotations

import json
from typing import Any

from absl import logging
from PIL import Image

from mmjax.hub.family import Json, complete
from mmjax.hub.folder import HubFolder, read_json
from mmjax.hub.tensors import CheckpointError

IMAGE_TOKEN = "<image>"


def read_preprocessor(folder: HubFolder) -> Json:
    """The image processor's settings, {} if there are none: a file of their own, or a part of the processor's."""
    if (folder.path / "preprocessor_config.json").exists():
        return read_json(folder.path / "preprocessor_config.json")
    if (folder.path / "processor_config.json").exists():
        return read_json(folder.path / "processor_config.json").get("image_processor", {})
    return {}


def pixel_keys(p: Json) -> dict[str, Any]:
    """An encoder's mean and std, where the image processor says them."""
    if p.get("do_normalize") is False or p.get("do_rescale") is False:
        raise CheckpointError("the image processor neither scales nor normalises; the encoders here do.")
    keys = {"mean": "image_mean", "std": "image_std"}
    return {ours: tuple(p[theirs]) for ours, theirs in keys.items() if isinstance(p.get(theirs), list)}


def media_keys(folder: HubFolder, encoder: Json, p: Json) -> dict[str, Any]:
    """Keys of `data.media` that follow from a checkpoint."""
    full = complete(encoder)
    # Of pictures at their native resolution, the size is a patch's.
    keys: dict[str, Any] = dict(size=full.get("size", full["patch"]), token=_image_token(folder))
    if folder.family.views:
        keys["views"] = folder.family.views(folder.config, p)
        if p.get("do_resize") is False:
            raise CheckpointError("the image processor does not resize; pictures in tiles are.")
    else:
        keys |= square_keys(p, keys["size"])
    if isinstance(p.get("resample"), int):
        keys["resample"] = Image.Resampling(p["resample"]).name.lower()
    return keys


def square_keys(p: Json, size: int) -> dict[str, Any]:
    """How a picture becomes the one square that the encoder reads, of `size` pixels a side."""
    if p.get("do_pad") and p.get("image_mean"):  # LLaVA's, with the mean colour around
        return dict(resize="pad", fill=[int(255 * mean) for mean in p["image_mean"]])
    edge = p.get("size")
    edge = edge.get("shortest_edge") if isinstance(edge, dict) else edge
    if not edge or not p.get("do_center_crop", "crop_size" in p):
        return dict(resize="stretch")
    if edge != size:
        logging.warning(
            "The image processor crops %d pixels out of %d; here the shorter side is all of the crop.", size, edge
        )
    return dict(resize="crop")


def check_size(c: Json, size: Any) -> None:
    """Raises CheckpointError if tiles of the image processor's `size` are not what the encoder reads."""
    wanted = c["vision_config"].get("image_size")
    wanted = wanted[0] if isinstance(wanted, list | tuple) else wanted
    found = size if isinstance(size, int) else set(size.values()) if size else wanted
    if wanted is not None and found not in (wanted, {wanted}):
        raise CheckpointError(f"the image processor makes tiles of {size}, the encoder reads {wanted} pixels.")


def _image_token(folder: HubFolder) -> str:
    """The name of the token that stands for a picture."""
    id = folder.config.get("image_token_id", folder.config.get("image_token_index"))
    if id is None or not (folder.path / "tokenizer.json").exists():
        return IMAGE_TOKEN
    added = json.loads((folder.path / "tokenizer.json").read_text()).get("added_tokens", [])
    return next((token["content"] for token in added if token["id"] == id), IMAGE_TOKEN)
