"""How a picture becomes media: whole, or cut into tiles; and which tokens then stand for it in the text."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from mmjax.data import image as images
from mmjax.data.image import RESAMPLE, ImageOptions
from mmjax.errors import UserError

Size = tuple[int, int]  # (width, height) in pixels, upright


class Token(str):
    """A special token, by its name."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One picture in the text.

    tiles: media slots that it takes.
    pieces: what stands in the text, in order: a Token, plain text, or int [n], which of the projected tokens of
      its tiles stand here (tile * span + k). A picture begins and ends with a Token or with projected tokens.
    grid: (rows, columns) of its projected tokens, where their positions are those of a grid (M-RoPE).
    """

    tiles: int
    pieces: tuple[str | np.ndarray, ...]
    grid: tuple[int, int] | None = None


class Views(Protocol):
    """options: how pixels are made. sized: whether a layout depends on the picture's size. axes: the shape
    of a token's position, () for a number, (3,) for M-RoPE."""

    options: ImageOptions
    sized: bool
    axes: tuple[int, ...]

    def layout(self, size: Size, span: int) -> Layout:
        """Where the tiles of a picture of that size stand, each of them `span` projected tokens.

        Raises:
          UserError: these views cannot be had with that span.
        """

    def cut(self, image: Image.Image) -> Any:
        """An upright RGB picture -> its tiles, uint8 [tiles, size, size, 3], or a dict of arrays [tiles, ...]."""

    def empty(self, count: int) -> Any:
        """What `cut` makes, for `count` tiles, all zeros."""

    def unlimited(self, span: int) -> tuple[Views, int]:
        """Views with room for every picture, and the `span` of theirs: what a prompt may show, if a row of a fixed
        size may not."""

    def fitted(self, pictures: Sequence[Any], span: int) -> tuple[Views, int]:
        """Views with room for what has been cut of these pictures, and little more, and the `span` of theirs."""


def count(tiles: Any) -> int:
    """How many tiles `cut` has made."""
    return len(jax.tree.leaves(tiles)[0])


def put(values: Any, begin: int, tiles: Any) -> None:
    """Writes what `cut` has made into media `begin` and on of what `empty` has; what it is short of stays."""
    for full, new in zip(jax.tree.leaves(values), jax.tree.leaves(tiles), strict=True):
        full[(slice(begin, begin + len(new)), *map(slice, new.shape[1:]))] = new


def put_positions(row: np.ndarray, begin: int, positions: np.ndarray) -> None:
    """Writes an example's positions, [n] or [n, 3], into a row's, [T] or [T, 3]: text has three alike."""
    row[begin : begin + len(positions)] = positions if positions.ndim == row.ndim else positions[:, None]


def layouts(views: Views, pictures: Sequence[bytes | os.PathLike[str] | str], span: int) -> tuple[Layout, ...]:
    """A layout for each picture, from its header; () where all are alike.

    Raises:
      ImageError: a picture whose size cannot be read.
    """
    if not views.sized:
        return ()
    return tuple(views.layout(images.upright_size(picture, views.options), span) for picture in pictures)


class _Squares:
    """Views whose media are squares of `media.size`."""

    axes = ()

    def __init__(self, options: ImageOptions):
        self.options = options

    def empty(self, count: int) -> np.ndarray:
        return np.zeros((count, self.options.size, self.options.size, 3), np.uint8)

    def unlimited(self, span: int) -> tuple[Views, int]:
        return self, span

    def fitted(self, pictures: Sequence[Any], span: int) -> tuple[Views, int]:
        del pictures  # all are of one size
        return self, span


class Whole(_Squares):
    """A picture is one square, as `media.resize` says."""

    sized = False

    def layout(self, size: Size, span: int) -> Layout:
        return Layout(1, (np.arange(span),))

    def cut(self, image: Image.Image) -> np.ndarray:
        return np.array(images.to_square(image, self.options), np.uint8)[None]


class _Tiled(_Squares):
    """What views of several tiles share: the picture is stretched to fit them."""

    sized = True

    def __init__(self, options: ImageOptions):
        if options.resize != "stretch":
            raise UserError(f"views: a picture in tiles wants resize='stretch', not {options.resize!r}.")
        super().__init__(options)

    def _to(self, image: Image.Image, size: Size) -> Image.Image:
        return image if image.size == size else image.resize(size, RESAMPLE[self.options.resample])

    def _tiles(self, canvas: Image.Image) -> list[np.ndarray]:
        """A canvas of whole tiles, cut row by row."""
        size = self.options.size
        pixels = np.asarray(canvas, np.uint8)
        rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
        grid = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        return list(grid.reshape(-1, size, size, 3))

    def _whole(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._to(image, (self.options.size,) * 2), np.uint8)


class AnyRes(_Tiled):
    """LLaVA-NeXT: the picture whole, then in tiles on the canvas that fits it best; in the text the tiles are one
    grid again, less the canvas's padding, with the projector's newline token after each row of it (`anyres` and
    `spatial_unpad` of llava/mm_utils.py and llava_arch.py; transformers, models/llava_next)."""

    def __init__(self, options: ImageOptions, pinpoints: Sequence[tuple[int, int]]):
        """
        Args:
          pinpoints: canvases to choose from, (height, width) in pixels, as config.json has them.

        Raises:
          UserError: a canvas that is no grid of tiles.
        """
        super().__init__(options)
        self.pinpoints = [(int(height), int(width)) for height, width in pinpoints]
        if not self.pinpoints or any(side % options.size or side < 1 for pair in self.pinpoints for side in pair):
            raise UserError(f"views.pinpoints: {self.pinpoints} are no grids of tiles of {options.size} pixels.")

    def canvas(self, size: Size) -> Size:
        """The canvas that keeps most of a picture's pixels, and of several such the smallest."""
        width, height = size

        def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - pinpoint[0] * pinpoint[1]

        best = max(self.pinpoints, key=merit)
        return best[1], best[0]

    def layout(self, size: Size, span: int) -> Layout:
        side, newline = math.isqrt(span - 1), span - 1
        if side * side != newline or not side:
            raise UserError(f"views: AnyRes wants a square of tokens and a newline for each tile, not {span}.")
        columns, rows = (edge // self.options.size for edge in self.canvas(size))
        y, x = np.mgrid[: rows * side, : columns * side]
        grid = (1 + y // side * columns + x // side) * span + y % side * side + x % side
        grid = _unpadded(grid, size)
        grid = np.pad(grid, ((0, 0), (0, 1)), constant_values=newline)
        return Layout(1 + rows * columns, (np.concatenate([np.arange(newline), grid.ravel()]),))

    def cut(self, image: Image.Image) -> np.ndarray:
        width, height = self.canvas(image.size)
        across, down = width / image.width, height / image.height
        if across < down:
            fitted = width, min(math.ceil(image.height * across), height)
        else:
            fitted = min(math.ceil(image.width * down), width), height
        canvas = Image.new("RGB", (width, height))
        canvas.paste(self._to(image, fitted), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
        return np.stack([self._whole(image), *self._tiles(canvas)])


def _unpadded(grid: np.ndarray, size: Size) -> np.ndarray:
    """A grid of tokens less the rows or columns that are the canvas's padding."""
    width, height = size
    rows, columns = grid.shape
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[margin : rows - margin]
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, margin : columns - margin]


class Split(_Tiled):
    """Idefics3 and SmolVLM: the picture in tiles, each after a token that says where it lies, then the whole
    (`image splitting`; transformers, models/idefics3, smolvlm)."""

    LIMIT = 4096  # pixels of the longer side, whatever `longest` says
    AROUND, WHOLE = Token("<fake_token_around_image>"), Token("<global-img>")

    def __init__(self, options: ImageOptions, longest: int, split: bool = True):
        """
        Args:
          longest: pixels that the longer side is scaled to before the picture is cut.
          split: whether there are tiles; else the whole alone.
        """
        super().__init__(options)
        self.longest, self.split = longest, split

    def _scaled(self, size: Size) -> Size:
        """The picture's size with its longer side at `longest`."""
        scaled = _longer_side(size, self.longest, even=True)
        return scaled if max(scaled) <= self.LIMIT else _longer_side(scaled, self.LIMIT, even=False)

    def grid(self, size: Size) -> tuple[int, int]:
        """(columns, rows) of tiles."""
        if not self.split:
            return 1, 1
        tile = self.options.size
        width, height = self._scaled(size)
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / tile)
            return columns, max(math.ceil(int(columns * tile / ratio) / tile), 1)
        rows = math.ceil(height / tile)
        return max(math.ceil(int(rows * tile * ratio) / tile), 1), rows

    def layout(self, size: Size, span: int) -> Layout:
        columns, rows = self.grid(size)
        tiles = columns * rows if columns * rows > 1 else 0
        pieces: list[str | np.ndarray] = []
        for tile in range(tiles):
            row, column = divmod(tile, columns)
            place = Token(f"<row_{row + 1}_col_{column + 1}>")
            pieces += [self.AROUND, place, tile * span + np.arange(span)]
            if column == columns - 1:
                pieces.append("\n")
        if tiles:
            pieces.append("\n")
        pieces += [self.AROUND, self.WHOLE, tiles * span + np.arange(span), self.AROUND]
        return Layout(tiles + 1, tuple(pieces))

    def cut(self, image: Image.Image) -> np.ndarray:
        columns, rows = self.grid(image.size)
        tile = self.options.size
        canvas = self._to(self._to(image, self._scaled(image.size)), (columns * tile, rows * tile))
        tiles = self._tiles(canvas) if columns * rows > 1 else []
        return np.stack([*tiles, self._whole(canvas)])


def _longer_side(size: Size, longer: int, even: bool) -> Size:
    """The size of that shape whose longer side is `longer`; even: the shorter is rounded up to an even number."""
    ratio = size[0] / size[1]
    shorter = int(longer / ratio) if ratio >= 1 else int(longer * ratio)
    shorter = max(shorter + (shorter % 2 if even else 0), 1)
    return (longer, shorter) if ratio >= 1 else (shorter, longer)


class Dynamic(_Tiled):
    """InternVL: the picture stretched to the grid of tiles nearest in shape, and the whole after the tiles
    (`dynamic resolution`, Chen et al. 2024, arXiv:2404.16821, section 3.3; transformers, models/got_ocr2)."""

    BEGIN, END = Token("<img>"), Token("</img>")

    def __init__(self, options: ImageOptions, fewest: int, most: int):
        """
        Args:
          fewest, most: tiles of a grid; one tile alone is the whole picture.
        """
        super().__init__(options)
        if not 1 <= fewest <= most:
            raise UserError(f"views: {fewest} tiles at least and {most} at most cannot be.")
        sides = range(1, most + 1)
        grids = [(across, down) for across in sides for down in sides if fewest <= across * down <= most]
        self._grids = sorted(grids, key=lambda grid: grid[0] * grid[1])

    def grid(self, size: Size) -> tuple[int, int]:
        """(columns, rows) of tiles; of grids of one shape the largest of which the picture fills half."""
        width, height = size
        best, difference = (1, 1), math.inf
        for columns, rows in self._grids:
            found = abs(width / height - columns / rows)
            fills = width * height > 0.5 * self.options.size**2 * columns * rows
            if found < difference or (found == difference and fills):
                best, difference = (columns, rows), found
        return best

    def layout(self, size: Size, span: int) -> Layout:
        columns, rows = self.grid(size)
        tiles = columns * rows + (columns * rows > 1)
        return Layout(tiles, (self.BEGIN, np.arange(tiles * span), self.END))

    def cut(self, image: Image.Image) -> np.ndarray:
        columns, rows = self.grid(image.size)
        tile = self.options.size
        tiles = self._tiles(self._to(image, (columns * tile, rows * tile)))
        return np.stack([*tiles, self._whole(image)] if len(tiles) > 1 else tiles)
