"""Pictures at their native resolution: resized to whole blocks of patches, cut into patches, and their tokens'
positions (Qwen2-VL, arXiv:2409.12191, section 2.1; transformers, models/qwen2_vl)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NARROWEST = 200  # longer side by shorter side


def smart_resize(height: int, width: int, block: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to resize a picture to: multiples of `block`, its shape nearly kept, and as many pixels
    as it has or the nearest number within the limits.

    A picture one block high or wide may have more than `max_pixels`.

    Raises:
      ValueError: the longer side is over 200 times the shorter one.
    """
    if max(height, width) > NARROWEST * min(height, width):
        raise ValueError(f"of {width} x {height} pixels is too narrow: over {NARROWEST} to 1")
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
      ValueError: sides that are no multiples of patch * merge.
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
