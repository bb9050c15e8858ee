"""What a model is fed, for people to look at: a row as text, its targets and media marked, and its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mmjax.data.tokenizer import Tokenizer
from mmjax.types import Batch

TARGET = "⟦", "⟧"  # around what is learned
GAP = 4  # pixels between two pictures of a sheet


def shapes(batch: Batch) -> str:
    """'tokens int32[4, 48], ...': the arrays of a batch or row."""
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves)
    return ", ".join(f"{name} {leaf.dtype}{list(leaf.shape)}" for name, leaf in named)


def row_text(row: Batch, tokenizer: Tokenizer) -> str:
    """A row, without a batch axis, as text, one example a line: targets between ⟦ and ⟧, with their weight where
    it is not 1; special tokens by their names; a picture as `<image 0: 4 tokens>`, 0 being its slot in the row."""
    lines = []
    for segment in range(1, int(row.segments.max()) + 1):
        here = np.flatnonzero(row.segments == segment)
        lines.append(f"{segment}. {''.join(_parts(row, here, tokenizer))}")
    padding = int((row.segments == 0).sum())
    return "\n".join([*lines, f"({len(row.tokens) - padding} tokens, {padding} of padding)"])


def pictures(row: Batch) -> Image.Image | None:
    """The pictures of a row in the order of its slots, side by side; None if it has none, or has patches."""
    media = row.media.get("image")
    if media is None or isinstance(media.values, dict) or not media.valid.any():
        return None
    shown = [np.asarray(values) for values in media.values[media.valid]]
    gap = np.full((shown[0].shape[0], GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([part for one in shown for part in (one, gap)][:-1], axis=1))


def write_pictures(row: Batch, file: Path) -> bool:
    """Writes the sheet of `pictures` as a file; whether there was one."""
    sheet = pictures(row)
    if sheet is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    return sheet is not None


def _parts(row: Batch, here: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    names = {number: name for name, (number, *_) in tokenizer.special_tokens().items()}
    media = row.media.get("image")
    before: list[int] = []  # text so far: what a token spells may hang on the ones before it

    def kind(i: int) -> tuple[float, int | None, bool]:
        medium = int(media.visible[i]) if media is not None and media.slot[i] >= 0 else None
        return float(row.loss_weight[i]), medium, int(row.tokens[i]) in names

    for (weight, medium, special), group in groupby(here, key=kind):
        ids = [int(row.tokens[i]) for i in group]
        if medium is not None:
            text = f"<image {medium}: {len(ids)} tokens>"
        elif special:
            text = "".join(names[number] for number in ids)
        else:
            known = tokenizer.decode(before)
            before += ids
            text = tokenizer.decode(before).removeprefix(known)
        opening = TARGET[0] + (f"{weight:g}: " if weight not in (0, 1) else "")
        yield f"{opening}{text}{TARGET[1]}" if weight else text
