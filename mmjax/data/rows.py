"""One row of a plan, assembled: examples side by side, and their pictures in the row's slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmjax.data import image as images
from mmjax.data.chat import Chat, Encoded
from mmjax.data.packing import Plan
from mmjax.data.quarantine import BadRecord, Quarantine
from mmjax.data.sources import Source
from mmjax.data.spec import DataSpec
from mmjax.types import Batch, Media, Sample


@dataclasses.dataclass(frozen=True)
class Feed:
    """One source of the mixture and how its samples are written down."""

    name: str
    source: Source
    chat: Chat
    augment: str

    def encode(self, index: int, spec: DataSpec) -> tuple[Sample, Encoded]:
        """A sample and its tokens, at most a row of them. Raises BadRecord if it cannot be used."""
        sample = self.source[index]
        encoded = self.chat.encode(sample)
        truncate = spec.too_long == "truncate"
        return sample, self.chat.fit(sample, encoded, spec.length, spec.media.slots, truncate)


class Rows:
    """Random access to the rows of a plan. Row r depends on the plan, the sources, the seed and r alone."""

    def __init__(self, spec: DataSpec, feeds: Sequence[Feed], plan: Plan, seed: int, quarantine: Quarantine):
        self.spec, self.feeds, self.plan, self.seed = spec, list(feeds), plan, seed
        self.quarantine = quarantine

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, r: int) -> Batch:
        """Row r without a batch axis: tokens int32 [T], media values uint8 [M, size, size, 3], and so on.

        An example with a picture that cannot be decoded loses its targets, and its pictures stay invalid.
        """
        row = self.empty()
        begin = media = 0  # tokens and media slots in use
        for number, (s, index) in enumerate(self.plan.row(r), 1):
            feed = self.feeds[s]
            room = (self.spec.length - begin, self.spec.media.slots - media)
            example = self._example(feed, index, room, seed=(self.seed, r, number))
            if example is not None:
                encoded, pictures = example
                _place(row, encoded, begin, media, feed.chat.span, number)
                for k, pixels in enumerate(pictures, media):
                    row.media["image"].values[k] = pixels
                    row.media["image"].valid[k] = True
                begin, media = begin + len(encoded), media + encoded.media_count
        return row

    def empty(self) -> Batch:
        """A row of padding."""
        length, slots, size = self.spec.length, self.spec.media.slots, self.spec.media.size
        image = Media(
            values=np.zeros((slots, size, size, 3), np.uint8),
            valid=np.zeros(slots, bool),
            slot=np.full(length, -1, np.int32),
            visible=np.full(length, -1, np.int32),
        )
        return Batch(
            tokens=np.zeros(length, np.int32),
            segments=np.zeros(length, np.int32),
            positions=np.zeros(length, np.int32),
            causal=np.ones(length, np.int32),
            loss_weight=np.zeros(length, np.float32),
            media={"image": image} if slots else {},
        )

    def _example(
        self, feed: Feed, index: int, room: tuple[int, int], seed: tuple[int, ...]
    ) -> tuple[Encoded, list[np.ndarray]] | None:
        """A sample's tokens and pictures; without targets and pictures if one of these cannot be decoded; None
        for a sample that is not what it was when the rows were planned. Both are noted in the quarantine."""
        try:
            sample, encoded = feed.encode(index, self.spec)
            if len(encoded) > room[0] or encoded.media_count > room[1]:
                raise BadRecord(sample.id, "has grown since it was measured")
        except BadRecord as error:
            self.quarantine.add(feed.name, error)
            return None
        try:
            pictures = [images.load(p, self.spec.media.options) for p in sample.images[: encoded.media_count]]
        except images.ImageError as error:
            self.quarantine.add(feed.name, BadRecord(sample.id, f"a picture {error}"))
            return dataclasses.replace(encoded, loss_weight=np.zeros_like(encoded.loss_weight)), []
        if feed.augment == "dihedral":
            turns = np.random.default_rng(seed).integers(8, size=len(pictures))
            pictures = [images.dihedral(p, int(k)) for p, k in zip(pictures, turns, strict=True)]
        return encoded, pictures


def _place(row: Batch, encoded: Encoded, begin: int, media: int, span: int, segment: int) -> None:
    """Writes an example into a row at token `begin`, its first picture being the row's medium `media`."""
    here = slice(begin, begin + len(encoded))
    row.tokens[here] = encoded.tokens
    row.segments[here] = segment
    row.positions[here] = np.arange(len(encoded))
    row.causal[here] = encoded.causal
    row.loss_weight[here] = encoded.loss_weight
    for image in row.media.values():
        image.slot[here] = np.where(encoded.slot >= 0, encoded.slot + media * span, -1)
        image.visible[here] = np.where(encoded.visible >= 0, encoded.visible + media, -1)
