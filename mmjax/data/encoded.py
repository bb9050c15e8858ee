"""One example as tokens: what a chat makes of a sample, and a row is packed from."""

from __future__ import annotations

import dataclasses

import numpy as np

ARRAYS = ("tokens", "loss_weight", "causal", "slot", "visible", "positions")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example of T tokens, or several that share their pictures.

    tokens, causal, slot, visible: int32 [T]; loss_weight: float32 [T]; positions: int32 [T], or [T, 3] if there is
        a picture with a grid; all as in types.Batch and types.Media.
    pictures: int [P, 3], for each picture where it begins and ends in the tokens, and the media slots it takes; of
      several examples, in the first of them.
    cut: number of tokens left out at the end, to fit a row.
    segments: int [T], from 0, which of the examples a token belongs to.
    """

    tokens: np.ndarray
    loss_weight: np.ndarray
    causal: np.ndarray
    slot: np.ndarray
    visible: np.ndarray
    positions: np.ndarray
    pictures: np.ndarray
    cut: int = 0
    segments: np.ndarray | None = None

    def __post_init__(self):
        if self.segments is None:
            object.__setattr__(self, "segments", np.zeros(len(self.tokens), np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def media_count(self) -> int:
        """Media slots that the pictures take."""
        return int(self.pictures[:, 2].sum())
