"""From what somebody asks to a batch of prompts: marks and pictures checked, pictures loaded, rows padded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from mmjax.data import image as images
from mmjax.data.buckets import bucket
from mmjax.data.encoded import Encoded
from mmjax.data.fields import check_text
from mmjax.data.marks import MARK, count_marks, escape_marks
from mmjax.data.views import Size, Views, count, put, put_positions
from mmjax.errors import UserError
from mmjax.types import Batch, Media, Sample, Turn

# A path, encoded bytes, an array (`data.image.from_array`), or a PIL image of any mode that a file may have.
Picture = str | os.PathLike[str] | bytes | np.ndarray | jax.Array | Image.Image


def ask(text: str, pictures: Sequence[Any], name: str = "prompt") -> Sample:
    """One question as a prompt; pictures that no `<image>` in it marks stand in front.

    Raises:
      UserError: fewer pictures than marks.
    """
    return Sample(name, (Turn("user", mark(text, len(pictures))),), tuple(pictures))


def mark(text: str, pictures: int) -> str:
    """The text with a mark for each of its pictures. Raises UserError if it already has more, or is no
    text."""
    if not isinstance(text, str):
        raise UserError(f"{text!r} is no text, but of type {type(text).__name__}.")
    if not pictures:
        return escape_marks(text)
    missing = pictures - count_marks(text)
    if missing < 0:
        raise UserError(
            f"{text!r} has {count_marks(text)} {MARK} marks for {pictures} pictures; the word itself is \\{MARK}."
        )
    return f"{MARK}\n" * missing + text


def check(prompt: Sample) -> None:
    """Raises UserError, with the prompt's id, if it is none that the assistant could answer."""
    marks = sum(count_marks(turn.text) for turn in prompt.turns)
    if prompt.images and marks != len(prompt.images):
        raise UserError(f"{prompt.id}: has {marks} {MARK} marks for {len(prompt.images)} pictures.")
    for k, turn in enumerate(prompt.turns, 1):
        check_text(turn.text, f"{prompt.id}: turn {k}")
        if turn.role not in ("system", "user", "assistant"):
            raise UserError(f"{prompt.id}: unknown role {turn.role!r}.")
    if not prompt.turns or prompt.turns[-1].role != "user":
        raise UserError(f"{prompt.id}: a prompt ends with a turn of the user.")


def size_of(picture: Picture, views: Views, name: str) -> Size:
    """(width, height) of a picture, upright; of a file, from its header. Raises ImageError as `load_rgb` does."""
    if not isinstance(picture, str | os.PathLike | bytes):
        return load_rgb(picture, views, name).size
    with _named(picture, name):
        return images.upright_size(picture, views.options)


def load_rgb(picture: Picture, views: Views, name: str) -> Image.Image:
    """An upright RGB picture, to be cut by the views: the same of a file, and of a PIL image that holds it.

    Raises:
      ImageError: it cannot be used; says which picture (`name`, or its path) and why.
    """
    with _named(picture, name):
        if isinstance(picture, Image.Image):
            return images.from_pil(picture, views.options)
        if isinstance(picture, np.ndarray | jax.Array):
            return images.from_array(np.asarray(picture), views.options)
        if isinstance(picture, str | os.PathLike | bytes):
            return images.decode(picture, views.options)
        raise images.ImageError(
            f"is a {type(picture).__name__}; give a path, encoded bytes, an array or a PIL image"
        )


@contextlib.contextmanager
def _named(picture: Picture, name: str) -> Iterator[None]:
    """Puts a picture's name in front of an ImageError."""
    try:
        yield
    except images.ImageError as error:
        path = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else name
        raise images.ImageError(f"{path} {error}") from error


def collate(
    encoded: Sequence[Encoded], pictures: Sequence[Sequence[Any]], rows: int, views: Views, span: int
) -> Batch:
    """Prompts as one batch, one a row, in buckets of length and of pictures.

    Args:
      encoded: tokens of each prompt. pictures: what the views have cut, those of each prompt; one that several
        prompts share, the same object in each, is in the batch once. rows: B; those beyond the prompts stay empty.
      span: projected tokens of a medium, as the prompts' slots have it.
    """
    length = bucket(max(map(len, encoded)))
    # Always one slot at least: with and without a picture it is the same program.
    slots = bucket(max(1, *(sum(map(count, shown)) for shown in pictures)), smallest=1)
    tokens, segments = (np.zeros((rows, length), np.int32) for _ in range(2))
    positions = np.zeros((rows, length, *views.axes), np.int32)
    causal, loss_weight = np.ones((rows, length), np.int32), np.zeros((rows, length), np.float32)
    slot, visible = (np.full((rows, length), -1, np.int32) for _ in range(2))
    distinct = {id(tiles): tiles for shown in pictures for tiles in shown}
    ends = np.cumsum([count(tiles) for tiles in distinct.values()], dtype=int)
    place = {key: range(end - count(distinct[key]), end) for key, end in zip(distinct, ends, strict=True)}
    fitted, here_span = views.fitted(list(distinct.values()), span)
    values = fitted.empty(bucket(int(ends[-1]) if len(ends) else 0, smallest=min(8, rows)))
    for key, tiles in distinct.items():
        put(values, place[key].start, tiles)
    values = jax.tree.map(lambda leaf: leaf[None], values)
    valid, index = np.zeros((rows, slots), bool), np.zeros((rows, slots), np.int32)
    for row, (one, shown) in enumerate(zip(encoded, pictures, strict=True)):
        here = row, slice(len(one))
        tokens[here], segments[here] = one.tokens, 1
        put_positions(positions[row], 0, one.positions)
        causal[here], loss_weight[here] = one.causal, one.loss_weight
        medium, token = np.divmod(one.slot, span)
        slot[here], visible[here] = np.where(one.slot < 0, -1, medium * here_span + token), one.visible
        used = [k for tiles in shown for k in place[id(tiles)]]
        index[row, : len(used)], valid[row, : len(used)] = used, True
    media = {"image": Media(values, valid, slot, visible, index)}
    return Batch(tokens, segments, positions, causal, loss_weight, media)
