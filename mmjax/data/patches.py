"""Pictures at their native resolution: resized to whole blocks of patches, cut into patches, and their tokens'
positions (Qwen2-VL, arXiv:2409.12191, section 2.1; transformers, models/qwen2_vl)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.buckets import bucket
from mmjax.data.image import RESAMPLE, ImageError, ImageOptions
from mmjax.data.views import Layout, Size, Token
from mmjax.errors import UserError

NARROWEST = 200  # longer side by shorter side
SMALLEST = 64  # patches that a batch of prompts has room for at least


def smart_resize(height: int, width: int, block: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to resize a picture to: multiples of `block`, its shape nearly kept, and as many pixels
    as it has or the nearest number within the limits.

    A picture one block high or wide may have more than `max_pixels`.

    Raises:
      ImageError: the longer side is over 200 times the shorter one.
    """
    if max(height, width) > NARROWEST * min(height, width):
        raise ImageError(f"of {width} x {height} pixels is too narrow: over {NARROWEST} to 1")
    rows, columns = round(height / block), round(width / block)
    if rows * columns * block**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels) * block
        rows, columns = (max(1, math.floor(side / scale)) for side in (height, width))
    elif rows * columns * block**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / block) for side in (height, width))
    return rows * block, columns * block


def patchify(pixels: np.ndarray, patch: int, merge: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 [H, W, 3] -> patches uint8 [N, patch * patch * 3], and the grid of them (rows, columns).

    Patches come block by block of merge x merge, blocks and what is in them row by row: the patches that become
    one token are neighbours.

    Raises:
      UserError: sides that are no multiples of patch * merge.
    """
    height, width, _ = pixels.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"{width} x {height} pixels are no whole blocks of {patch * merge}.")
    rows, columns = height // patch, width // patch
    x = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    return x.transpose(0, 3, 1, 4, 2, 5, 6).reshape(rows * columns, patch * patch * 3), (rows, columns)


def mrope_positions(length: int, spans: Sequence[tuple[int, tuple[int, int]]]) -> np.ndarray:
    """Time, row and column of each token of one example, int32 [length, 3].

    Text counts on by one in all three. The tokens of a picture stand at the time, row and column where the text
    before it ends, plus their own row and column; the text behind goes on after the largest of all.

    Args:
      spans: (first token, (rows, columns) of tokens) of each picture, in order; a span that `length` cuts off
        is left out.
    """
    positions = np.zeros((length, 3), np.int32)
    end = position = 0  # tokens done, and the position that comes next
    for start, (rows, columns) in spans:
        if start + rows * columns > length:
            break
        positions[end:start] = position + np.arange(start - end)[:, None]
        position += start - end
        end = start + rows * columns
        row, column = np.divmod(np.arange(rows * columns), columns)
        positions[start:end] = position + np.stack([np.zeros_like(row), row, column], axis=1)
        position += max(rows, columns)
    positions[end:] = position + np.arange(length - end)[:, None]
    return positions


class Native:
    """Qwen2-VL: a picture is one medium, {'patches': uint8 [1, n, P * P * 3], 'grid': int32 [1, 2]}, at its own
    resolution and shape as far as the limits allow. P is `media.size`, the side of a patch in pixels. In a batch
    there are N patches of each: a number of the config in training, as many as the largest picture takes in
    prompts."""

    sized, axes = True, (3,)

    def __init__(
        self,
        options: ImageOptions,
        patches: int,
        merge: int,
        min_pixels: int,
        max_pixels: int,
        begin: str = "<|vision_start|>",
        end: str = "<|vision_end|>",
    ):
        """
        Args:
          patches: N, those of the encoder. merge: side in patches of what becomes one token.
          min_pixels, max_pixels: limits within which pictures are resized; a picture of too many patches at that
            is refused.
          begin, end: special tokens around a picture's.

        Raises:
          UserError: limits that cannot be.
        """
        if not 0 < min_pixels <= max_pixels:
            raise UserError(f"views: min_pixels {min_pixels} and max_pixels {max_pixels} are no limits.")
        self.options, self.patches, self.merge = options, patches, merge
        self.limits = min_pixels, max_pixels
        self.begin, self.end = Token(begin), Token(end)

    def resized(self, size: Size) -> Size:
        """The size that a picture is resized to. Raises ImageError if it takes more than N patches."""
        width, height = size
        height, width = smart_resize(height, width, self.options.size * self.merge, *self.limits)
        taken = height * width // self.options.size**2
        if taken > self.patches:
            raise ImageError(
                f"of {size[0]} x {size[1]} pixels takes {taken:,} patches and there is room for {self.patches:,}: "
                "raise data.media.views.patches and model.encoders.image.patches (attention takes their square), "
                f"or lower data.media.views.max_pixels to {self.patches * self.options.size**2:,}"
            )
        return width, height

    def layout(self, size: Size, span: int) -> Layout:
        if span * self.merge**2 != self.patches:
            raise UserError(
                f"views: {self.patches} patches are not the {span} tokens that the model makes of them."
            )
        columns, rows = (side // (self.options.size * self.merge) for side in self.resized(size))
        return Layout(1, (self.begin, np.arange(rows * columns), self.end), (rows, columns))

    def cut(self, image: Image.Image) -> dict[str, np.ndarray]:
        image = image.resize(self.resized(image.size), RESAMPLE[self.options.resample])
        patches, grid = patchify(np.asarray(image, np.uint8), self.options.size, self.merge)
        return dict(patches=patches[None], grid=np.asarray(grid, np.int32)[None])

    def empty(self, count: int) -> dict[str, np.ndarray]:
        patches = np.zeros((count, self.patches, self.options.size**2 * 3), np.uint8)
        return dict(patches=patches, grid=np.zeros((count, 2), np.int32))

    def unlimited(self, span: int) -> tuple[Native, int]:
        return self._with_room(max(self.patches, self.limits[1] // self.options.size**2))

    def fitted(self, pictures: Sequence[dict[str, np.ndarray]], span: int) -> tuple[Native, int]:
        most = max((picture["patches"].shape[1] for picture in pictures), default=0)
        return self._with_room(bucket(most, smallest=SMALLEST))

    def _with_room(self, patches: int) -> tuple[Native, int]:
        tokens = -(-patches // self.merge**2)
        return Native(self.options, tokens * self.merge**2, self.merge, *self.limits, self.begin, self.end), tokens
