"""How much memory answering takes, estimated before it is taken, and how many prompts are answered at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax.data.buckets import bucket
from mmjax.data.encoded import Encoded
from mmjax.data.patches import SMALLEST
from mmjax.data.views import Views
from mmjax.errors import UserError
from mmjax.inference.prompts import size_of
from mmjax.model import MultimodalLM
from mmjax.types import Sample

UNKNOWN = 2**62  # bytes, where nothing says how many there are


def memory_left(params: Mapping[str, Any]) -> int:
    """Bytes of the device's memory, or of the machine's where the device says nothing, beside the parameters."""
    leaves = jax.tree.leaves(params)
    stats = next(iter(leaves[0].devices())).memory_stats() if leaves else None
    limit = (stats or {}).get("bytes_limit") or _physical()
    return limit - sum(leaf.nbytes for leaf in leaves)


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return UNKNOWN


def patches_of(model: MultimodalLM, encoded: Encoded) -> list[int]:
    """How many patches attend to one another in each medium of a prompt; [] where the encoder has no attention."""
    encoder = model.encoders.get("image")
    if not getattr(encoder, "heads", 0):
        return []
    if merge := getattr(encoder, "merge", 0):  # pictures of their own size; padded as a batch pads them
        found = [int((encoded.slot[begin:end] >= 0).sum()) * merge**2 for begin, end, _ in encoded.pictures]
        return [bucket(count, smallest=SMALLEST) for count in found]
    return [(encoder.size // encoder.patch) ** 2] * encoded.media_count


def picture_bytes(model: MultimodalLM, patches: Sequence[int]) -> int:
    """Estimate of what encoding a prompt's media takes: float32 attention of all patches to all, N * N * heads."""
    if not patches:
        return 0
    return 4 * model.encoders["image"].heads * bucket(len(patches), smallest=1) * max(patches) ** 2


def text_bytes(model: MultimodalLM, prompt: int, more: int, copies: int = 1, logits: int = 1) -> int:
    """Estimate of what a row takes: keys and values, float32 attention of the prompt, float32 logits.

    Args:
      prompt, more: its tokens, and those after it. copies: continuations of a prompt that go on side by side.
      logits: places that have logits at once.
    """
    b, cells = model.backbone, prompt + more
    cache = 2 * b.depth * copies * cells * b.kv_heads * b.head_dim * np.dtype(b.dtype).itemsize
    return cache + 4 * b.heads * prompt * cells + 4 * b.vocab * logits


def rows_that_fit(most: int, row: int, left: int) -> int:
    """`most` rows, or where `row` bytes of each would take more than half of what is `left` (a program holds more
    than an estimate counts), the largest power of two that does not; 1 at least."""
    rows = most
    while rows > 1 and rows * row > left // 2:
        rows = 1 << ((rows - 1).bit_length() - 1)
    return max(1, rows)


def check_memory(
    model: MultimodalLM, views: Views, prompt: Sample, encoded: Encoded, more: int, left: int
) -> None:
    """Raises UserError if one prompt, or its pictures, would take more bytes than are left; names its largest
    picture, how much it takes, and the key that makes it smaller. more: tokens of the answer."""
    patches = patches_of(model, encoded)
    if (need := picture_bytes(model, patches)) > left:
        most = max(patches)
        k = int(np.searchsorted(encoded.pictures[:, 2].cumsum(), patches.index(most), side="right"))
        width, height = size_of(prompt.images[k], views, f"{prompt.id}, picture {1 + k}:")
        remedy = "Show fewer pictures at once"
        if hasattr(views, "merge"):  # its number of patches is that of its pixels
            room, size = (max(left, 0) / (need / most**2)) ** 0.5, SMALLEST
            while (larger := bucket(size + 1, smallest=SMALLEST)) <= room:
                size = larger  # what a batch pads its pictures to
            pixels = size * model.encoders["image"].patch ** 2
            remedy = (
                "Lower data.media.views.max_pixels in the workdir's config (max_pixels of the image processor, "
                f"before a conversion) to {pixels:,}"
            )
        raise UserError(
            f"{prompt.id}, picture {1 + k}: of {width} x {height} pixels takes {most:,} patches, and attention "
            f"among all of the prompt's about {_shown(need)}; {_shown(left)} are left beside the model. {remedy}."
        )
    if (need := text_bytes(model, bucket(len(encoded)), more)) > left:
        raise UserError(
            f"{prompt.id}: {len(encoded):,} tokens and {more:,} of the answer take about {_shown(need)}; "
            f"{_shown(left)} are left beside the model. Shorten it, or lower max_new."
        )


def _shown(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{max(size, 0) / 1e6:,.1f} MB"
