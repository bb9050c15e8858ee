"""From what somebody asks to a batch of prompts: marks and pictures checked, pictures loaded, rows padded."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data import image as images
from mmjax.data.chat import MARK, Encoded
from mmjax.inference.program import bucket
from mmjax.types import Batch, Media, Sample, Turn

# A path, encoded bytes, uint8 [H, W, 3], or a PIL image.
Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def ask(text: str, pictures: Sequence[Any], name: str = "prompt") -> Sample:
    """One question as a prompt; pictures that no `<image>` in it marks stand in front.

    Raises:
      ValueError: fewer pictures than marks.
    """
    return Sample(name, (Turn("user", mark(text, len(pictures))),), tuple(pictures))


def mark(text: str, pictures: int) -> str:
    """The text with a mark for each of its pictures. Raises ValueError if it already has more."""
    missing = pictures - text.count(MARK)
    if missing < 0:
        raise ValueError(f"{text!r} has {text.count(MARK)} {MARK} marks for {pictures} pictures.")
    return f"{MARK}\n" * missing + text


def check(prompt: Sample) -> None:
    """Raises ValueError, with the prompt's id, if it is none that the assistant could answer."""
    marks = sum(turn.text.count(MARK) for turn in prompt.turns)
    if marks != len(prompt.images):
        raise ValueError(f"{prompt.id}: has {marks} {MARK} marks for {len(prompt.images)} pictures.")
    for turn in prompt.turns:
        if turn.role not in ("system", "user", "assistant"):
            raise ValueError(f"{prompt.id}: unknown role {turn.role!r}.")
    if not prompt.turns or prompt.turns[-1].role != "user":
        raise ValueError(f"{prompt.id}: a prompt ends with a turn of the user.")


def load_pixels(picture: Picture, options: images.ImageOptions, name: str) -> np.ndarray:
    """uint8 [size, size, 3]; an array of that shape is taken as it is.

    Raises:
      ImageError: it cannot be used; says which picture (`name`, or its path) and why.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise images.ImageError(f"{name} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3].")
        if picture.shape == (options.size, options.size, 3):
            return picture
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        # By way of a file, so that whatever its mode, it takes the one path that training pictures took.
        file = io.BytesIO()
        try:
            picture.save(file, "PNG")
        except OSError as error:
            raise images.ImageError(f"{name} has mode {picture.mode}; convert it to RGB.") from error
        picture = file.getvalue()
    try:
        return images.load(picture, options)
    except images.ImageError as error:
        raise images.ImageError(f"{name if isinstance(picture, bytes) else os.fspath(picture)} {error}") from error


def collate(encoded: Sequence[Encoded], pictures: Sequence[Sequence[np.ndarray]], rows: int, size: int) -> Batch:
    """Prompts as one batch, one a row, in buckets of length and of pictures.

    Args:
      encoded: tokens of each prompt. pictures: uint8 [size, size, 3], those of each prompt; one that several
        prompts share, the same array in each, is in the batch once. rows: B; those beyond the prompts stay empty.
    """
    length = bucket(max(map(len, encoded)))
    # Always one slot at least: with and without a picture it is the same program.
    slots = bucket(max(1, *map(len, pictures)), smallest=1)
    tokens, segments, positions = (np.zeros((rows, length), np.int32) for _ in range(3))
    causal, loss_weight = np.ones((rows, length), np.int32), np.zeros((rows, length), np.float32)
    slot, visible = (np.full((rows, length), -1, np.int32) for _ in range(2))
    distinct = {id(pixels): pixels for shown in pictures for pixels in shown}
    place = {key: i for i, key in enumerate(distinct)}
    values = np.zeros((1, bucket(len(distinct), smallest=1), size, size, 3), np.uint8)
    for i, pixels in enumerate(distinct.values()):
        values[0, i] = pixels
    valid, index = np.zeros((rows, slots), bool), np.zeros((rows, slots), np.int32)
    for row, (one, shown) in enumerate(zip(encoded, pictures, strict=True)):
        here = row, slice(len(one))
        tokens[here], segments[here], positions[here] = one.tokens, 1, np.arange(len(one))
        causal[here], loss_weight[here] = one.causal, one.loss_weight
        slot[here], visible[here] = one.slot, one.visible
        for k, pixels in enumerate(shown):
            index[row, k], valid[row, k] = place[id(pixels)], True
    media = {"image": Media(values, valid, slot, visible, index)}
    return Batch(tokens, segments, positions, causal, loss_weight, media)
