"""A checkpoint's image processor: the config that `transformers` would read, with its class's defaults, every key
known. What other rooms make of the keys: hub/preprocess.py, and `views` of the families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.hub.tensors import CheckpointError

Json = Mapping[str, Any]

_CLIP_COLOURS = dict(
    image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]
)
_HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
_ALL = dict(  # of every class; resample 3 is bicubic, 1 Lanczos
    do_resize=True,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    do_convert_rgb=True,
    default_to_square=True,
    resample=3,
)
_SQUARE = _ALL | _CLIP_COLOURS | dict(do_center_crop=False, crop_size=None, do_pad=False, pad_size=None)
_CROP = _SQUARE | dict(
    size=dict(shortest_edge=224),
    crop_size=dict(height=224, width=224),
    do_center_crop=True,
    default_to_square=False,
)
_SPLIT = _ALL | _HALF | dict(resample=1, do_image_splitting=True)
# Class of `transformers` -> (what it makes of a picture, the defaults of its class).
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPImageProcessor": ("square", _CROP),
    "LlavaImageProcessor": ("square", _CROP),
    "BitImageProcessor": ("square", _CROP),
    "BlipImageProcessor": ("square", _SQUARE | dict(size=dict(height=384, width=384))),
    "SiglipImageProcessor": (
        "square",
        _SQUARE | _HALF | dict(size=dict(height=224, width=224), default_to_square=False),
    ),
    "IdeficsImageProcessor": (
        "square",
        _SQUARE | dict(size=dict(height=224, width=224), image_size=None, image_num_channels=3),
    ),
    "LlavaNextImageProcessor": (
        "anyres",
        _CROP
        | dict(do_pad=True, image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
    ),
    "Idefics3ImageProcessor": (
        "split",
        _SPLIT | dict(size=dict(longest_edge=4 * 364), max_image_size=dict(longest_edge=364)),
    ),
    "SmolVLMImageProcessor": (
        "split",
        _SPLIT | dict(size=dict(longest_edge=4 * 364), max_image_size=dict(longest_edge=364)),
    ),
    "GotOcr2ImageProcessor": (
        "dynamic",
        _ALL
        | _CLIP_COLOURS
        | dict(size=dict(height=384, width=384), crop_to_patches=False, min_patches=1, max_patches=12),
    ),
    "Qwen2VLImageProcessor": (
        "native",
        _ALL
        | _CLIP_COLOURS
        | dict(size=dict(shortest_edge=56 * 56, longest_edge=28 * 28 * 1280), default_to_square=False)
        | dict(min_pixels=None, max_pixels=None, patch_size=14, temporal_patch_size=2, merge_size=2),
    ),
}
# config.json's `model_type` -> the class of a folder that names none.
CLASS_OF = {
    "llava": "LlavaImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "idefics": "IdeficsImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "internvl": "GotOcr2ImageProcessor",
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "paligemma": "SiglipImageProcessor",
}
# Keys of an image processor at native resolution -> those of the encoder that must say the same.
NATIVE_KEYS = dict(
    patch_size="patch_size", merge_size="spatial_merge_size", temporal_patch_size="temporal_patch_size"
)
# Keys that no pixel of a picture hangs on: names of classes, formats and places of arrays, counts of tokens (ours
# are the model's own), and what is for videos alone.
_NAMES = ("processor_class", "image_processor_type", "feature_extractor_type", "auto_map", "model_input_names")
_OLD = ("_processor_class", "_valid_processor_keys", "use_fast", "backend")
_ARRAYS = ("data_format", "input_data_format", "return_tensors", "device", "disable_grouping")
_COUNTS = ("image_seq_length", "image_seq_len", "num_image_tokens", "return_row_col_info")
_VIDEOS = ("video_processor_type", "video_sampling", "do_sample_frames", "fps", "num_frames", "min_frames")
_VIDEOS += ("max_frames", "return_metadata", "video_metadata")
IRRELEVANT = frozenset((*_NAMES, *_OLD, *_ARRAYS, *_COUNTS, *_VIDEOS))
# Keys of all classes that those with more than one square a picture do not look at.
_SQUARES_ALONE = frozenset(("do_center_crop", "crop_size", "do_pad", "pad_size"))
# What else a class takes at one value alone.
_FIXED = {"do_convert_rgb": True, "image_num_channels": 3, "aspect_ratio_setting": "anyres"}


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """settings: keys of the class, all of them. name: of the class in `transformers`, without 'Fast' or 'Pil'.
    where: the file, for messages; '' if the folder has none, and the settings are made for its encoder."""

    where: str
    name: str
    settings: Json

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    def refused(self, key: str, remedy: str) -> CheckpointError:
        """The error for a key whose value is not known here."""
        return CheckpointError(f"{self.where or 'image processor'}: {key} is {self.settings.get(key)!r}: {remedy}")

    def size(self, key: str = "size") -> dict[str, int]:
        """A size as a dict, whichever way it is written; {} for none."""
        value = self.settings[key]
        if isinstance(value, Mapping):
            return {name: side for name, side in value.items() if side is not None}
        if isinstance(value, list | tuple) and len(value) == 2:
            return dict(height=value[0], width=value[1])
        if isinstance(value, int) and not isinstance(value, bool):
            square = key != "size" or self.settings["default_to_square"]
            return dict(height=value, width=value) if square else dict(shortest_edge=value)
        if value is None:
            return {}
        raise self.refused(key, "not a size; give one number, or {'height': ..., 'width': ...}.")

    def side(self, key: str, *names: str) -> int:
        """The side of a size that is written with `names`, height and width if none is given.

        Raises:
          CheckpointError: it is written otherwise, or the sides differ.
        """
        size, names = self.size(key), names or ("height", "width")
        sides = set(size.values())
        if set(size) != set(names) or len(sides) != 1 or not all(type(side) is int and side > 0 for side in sides):
            raise self.refused(key, f"give {' and '.join(names)}, in pixels" + ", equal" * (len(names) > 1) + ".")
        return sides.pop()

    def check_tile(self, key: str, wanted: int | None, *names: str) -> None:
        """Raises CheckpointError if `key` is not the encoder's size; `wanted` is None where that is not known."""
        if self.side(key, *names) != (wanted or self.side(key, *names)):
            raise self.refused(key, f"the encoder reads {wanted} pixels; set it to that.")


def complete_settings(found: Json, where: str, model_type: str) -> ImageProcessor:
    """An image processor's config with the defaults of its class. A key that is null has no default, as there.

    Args:
      found: the JSON. where: its file. model_type: of config.json, for a config that names no class.

    Raises:
      CheckpointError: a class or a key that is not known here, or a key with a value that is not.
    """
    found = dict(found)
    named = found.get("image_processor_type") or found.get("feature_extractor_type")
    name = str(named or CLASS_OF[model_type]).replace("FeatureExtractor", "ImageProcessor")
    name = name.removesuffix("Fast").removesuffix("Pil")
    kind, defaults = CLASSES.get(name, ("", {}))
    if name == "IdeficsImageProcessor" and found.get("image_size") is not None:  # goes before `size`
        found["size"] = found["image_size"]
    processor = ImageProcessor(where, name, {**defaults, **found})
    expected, _ = CLASSES[CLASS_OF[model_type]]
    if kind != expected:
        known = ", ".join(name for name, (kind, _) in CLASSES.items() if kind == expected)
        raise processor.refused("image_processor_type", f"{model_type} is known here with {known}.")
    for key in found.keys() - defaults.keys() - IRRELEVANT - _FIXED.keys():
        if found[key] is not None and (kind == "square" or key not in _SQUARES_ALONE):
            raise processor.refused(key, f"{name} has no such key here; remove it if no pixel hangs on it.")
    for key, value in _FIXED.items():
        if processor.settings.get(key) not in (None, value):
            raise processor.refused(key, f"only {value!r} is known here; set it to that.")
    return processor


def made_for(size: int, config: Json) -> ImageProcessor:
    """The image processor of a folder that has none: of the family's class, for pictures of the encoder's size."""
    name = CLASS_OF[config["model_type"]]
    kind, defaults = CLASSES[name]
    square, vision = dict(height=size, width=size), config.get("vision_config") or {}
    pinpoints = config.get("image_grid_pinpoints") or defaults.get("image_grid_pinpoints")
    fitting: dict[str, dict[str, Any]] = {
        "square": dict(size=square, do_center_crop=False),
        "anyres": dict(size=square, crop_size=square, image_grid_pinpoints=pinpoints),
        "split": dict(size=dict(longest_edge=4 * size), max_image_size=dict(longest_edge=size)),
        "dynamic": dict(size=square),
        "native": {ours: vision.get(theirs, defaults.get(ours)) for ours, theirs in NATIVE_KEYS.items()},
    }
    return ImageProcessor("", name, {**defaults, **fitting[kind]})


def encoder_side(c: Json) -> int | None:
    """The side of the pictures that config.json's encoder reads, None if it does not say."""
    side = c["vision_config"].get("image_size")
    return side[0] if isinstance(side, list | tuple) else side
