"""The contracts between the rooms: what data hands to a model, and what a model hands back.

Shape letters, used throughout the code: B rows of a batch, T tokens of a row, M media slots of a row,
N features of one medium, K projected tokens of one medium, D width, H heads, S cells of a cache, L layers.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn: `role` is 'system', 'user' or 'assistant'; each `<image>` in `text` marks a picture.

    `weight` is what the tokens of a reply weigh as targets, 0 for a reply that is read but not learned.
    """

    role: str
    text: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training or evaluation example, before any tokenising: what every source yields.

    `images` holds encoded pictures (PNG, JPEG, ... bytes) or paths of them, one per `<image>` mark, in order.
    `unread` names keys of its record that are not read.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[bytes | os.PathLike[str], ...] = ()
    unread: tuple[str, ...] = ()


@struct.dataclass
class Media:
    """All media of one modality in a batch, and where the text uses them.

    values: [B, M, ...] as decoded: images uint8 [B, M, height, width, 3]. A picture is one medium, or several: its
        tiles, in slots next to one another (data/views.py). Or a dict of such arrays, for pictures of their own
        size: patches uint8 [B, M, N, P * P * 3] and grid int32 [B, M, 2] (data/patches.py).
    valid: bool [B, M], False where a slot of the fixed budget is empty.
    slot: int32 [B, T], which of the row's M * K projected tokens stands here (medium * K + k), -1 for text.
    visible: int32 [B, T], which of the row's M media this token may cross-attend to, -1 for none; of a picture in
        tiles, which is spliced and never attended to, the first.
    index: None, or int32 [B, M] where rows share media: values is [1, U, ...] then, and slot m of row b holds
        values[0, index[b, m]]. Each of the U is encoded once.
    """

    values: Array | dict[str, Array]
    valid: Array
    slot: Array
    visible: Array
    index: Array | None = None


@struct.dataclass
class Batch:
    """Packed token rows of a static shape, whatever the mix of media in them.

    tokens: int32 [B, T].
    segments: int32 [B, T], 0 for padding, 1.. for the packed example a token belongs to.
    positions: int32 [B, T], position of the token within its example; or [B, T, 3], its time, row and column,
        all three the same for text (Qwen2-VL's M-RoPE; data/patches.py).
    causal: int32 [B, T], 1 opens a new causal step, 0 continues the block of the token before: its running
        sum gives causal text, bidirectional image blocks and prefix-LM with one mask (nn/masks.py).
    loss_weight: float32 [B, T], weight of this token as a target; 0 for prompts, media and padding.
    media: modality name -> Media.
    """

    tokens: Array
    segments: Array
    positions: Array
    causal: Array
    loss_weight: Array
    media: dict[str, Media] = struct.field(default_factory=dict)


@struct.dataclass
class Cache:
    """Keys and values of what has been read so far, for decoding.

    keys, values: [L, B, S, H, D]; index: int32 [], the next free cell of S.
    segments, steps: int32 [B, S], the cell's example (0: empty or padding) and its causal step.
    positions: int32 [B, S], the cell's position within its example (for sliding windows), the largest component
        of one that has several.
    cross: media projections for gated cross-attention, {} where the model has none.
    """

    keys: Array
    values: Array
    segments: Array
    steps: Array
    positions: Array
    index: Array
    cross: dict[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class Output:
    """hidden: [B, T, D], the backbone's last hidden states; aux: named extra results of a forward pass."""

    hidden: Array
    aux: dict[str, Any] = struct.field(default_factory=dict)
