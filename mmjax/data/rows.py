"""One row of a plan, assembled: examples side by side, and their pictures in the row's slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data import image as images
from mmjax.data.chat import Chat
from mmjax.data.encoded import ARRAYS, Encoded
from mmjax.data.marks import MARK, count_marks
from mmjax.data.packing import Plan
from mmjax.data.quarantine import BadRecord, Quarantine
from mmjax.data.sources import Source
from mmjax.data.spec import DataSpec
from mmjax.data.views import Layout, Views, count, layouts, put, put_positions
from mmjax.errors import UserError
from mmjax.types import Batch, Media, Sample


@dataclasses.dataclass(frozen=True)
class Feed:
    """One source of the mixture and how its samples are written down and their pictures cut."""

    name: str
    source: Source
    chat: Chat
    views: Views
    augment: str
    turns: str

    def encode(self, index: int, spec: DataSpec) -> tuple[Sample, Encoded]:
        """A sample and its tokens, at most a row of them. Raises BadRecord if it cannot be used."""
        sample = self.source[index]
        encode = self._encode_apart if self.turns == "apart" else self._fit
        try:
            return sample, encode(sample, layouts(self.views, sample.images, self.chat.span), spec)
        except BadRecord:
            raise
        except images.ImageError as error:
            raise BadRecord(sample.id, f"a picture {error}") from error
        except UserError as error:  # a text or picture that the tokenizer or image processor cannot take
            raise BadRecord(sample.id, str(error)) from error

    def _fit(self, sample: Sample, found: Sequence[Layout], spec: DataSpec) -> Encoded:
        encoded = self.chat.encode(sample, found)
        return self.chat.fit(sample, encoded, spec.length, spec.media.slots, spec.too_long == "truncate")

    def _encode_apart(self, sample: Sample, found: Sequence[Layout], spec: DataSpec) -> Encoded:
        """Each question with its answer as an example of its own, all about the pictures of the first question:
        the same media slots, encoded once. What a row has no room for is left out, question by question."""
        parts = [self._fit(part, found, spec) for part in _questions(sample)]
        ends = np.cumsum([len(part) for part in parts])
        kept = parts[: max(1, int(np.searchsorted(ends, spec.length, side="right")))]
        if len(kept) < len(parts) and spec.too_long != "truncate":
            raise BadRecord(sample.id, f"has {ends[-1]} tokens; a row takes {spec.length}")
        arrays = {name: np.concatenate([getattr(part, name) for part in kept]) for name in ARRAYS}
        segments = np.repeat(np.arange(len(kept)), [len(part) for part in kept])
        cut = int(ends[-1]) - len(segments)
        return Encoded(**arrays, pictures=kept[0].pictures, cut=cut, segments=segments)


def _questions(sample: Sample) -> list[Sample]:
    """A sample for each user turn and what answers it, each with the system turns and all pictures. What stands
    before the first question belongs to it; a question without a target is left out.

    Raises:
      BadRecord: there is no user turn, or a picture in another than the first.
    """
    system = [turn for turn in sample.turns if turn.role == "system"]
    turns = [turn for turn in sample.turns if turn.role != "system"]
    starts = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not starts:
        raise BadRecord(sample.id, "turns='apart' requires a user turn")
    if sample.images and any(count_marks(turn.text) for i, turn in enumerate(turns) if i > starts[0]):
        raise BadRecord(sample.id, "turns='apart' requires all pictures in the first question")
    parts = []
    for begin, end in zip([0, *starts[1:]], [*starts[1:], len(turns)], strict=True):
        part = turns[begin:end]
        if begin and sample.images:
            part[0] = dataclasses.replace(part[0], text=f"{MARK * len(sample.images)}\n{part[0].text}")
        replies = [turn for turn in part if turn.role == "assistant"]
        if replies and not any(turn.weight for turn in replies):
            continue
        parts.append(dataclasses.replace(sample, turns=(*system, *part)))
    if not parts:
        raise BadRecord(sample.id, "has no target: all answers have the weight 0")
    return parts


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
        row = empty_row(self.spec)
        begin = media = 0  # tokens and media slots in use
        for number, (s, index) in enumerate(self.plan.row(r)):
            feed = self.feeds[s]
            room = (self.spec.length - begin, self.spec.media.slots - media)
            example = self._example(feed, index, room, seed=(self.seed, r, number))
            if example is not None:
                encoded, pictures = example
                _place(row, encoded, begin, media, feed.chat.span)
                end = media
                for tiles in pictures:
                    put(row.media["image"].values, end, tiles)
                    end += count(tiles)
                    row.media["image"].valid[media:end] = True
                begin, media = begin + len(encoded), media + encoded.media_count
        return row

    def _example(
        self, feed: Feed, index: int, room: tuple[int, int], seed: tuple[int, ...]
    ) -> tuple[Encoded, list[Any]] | None:
        """A sample's tokens and the tiles of its pictures; without targets and pictures if one of these cannot be
        decoded; None for a sample that is not what it was when the rows were planned. Both are noted in the
        quarantine."""
        try:
            sample, encoded = feed.encode(index, self.spec)
            if len(encoded) > room[0] or encoded.media_count > room[1]:
                raise BadRecord(sample.id, "has grown since it was measured")
        except BadRecord as error:
            self.quarantine.add(feed.name, error)
            return None
        views = feed.views
        try:
            pictures = [views.cut(images.decode(p, views.options)) for p in sample.images[: len(encoded.pictures)]]
            if [count(tiles) for tiles in pictures] != encoded.pictures[:, 2].tolist():
                raise images.ImageError("has another size than its header says")
        except UserError as error:
            self.quarantine.add(feed.name, BadRecord(sample.id, f"a picture {error}"))
            return dataclasses.replace(encoded, loss_weight=np.zeros_like(encoded.loss_weight)), []
        if feed.augment == "dihedral":
            turns = np.random.default_rng(seed).integers(8, size=len(pictures))
            pictures = [images.dihedral(p[0], int(k))[None] for p, k in zip(pictures, turns, strict=True)]
        return encoded, pictures


def empty_row(spec: DataSpec) -> Batch:
    """A row of padding, without a batch axis."""
    length, slots, views = spec.length, spec.media.slots, spec.media.make_views()
    image = Media(
        values=views.empty(slots),
        valid=np.zeros(slots, bool),
        slot=np.full(length, -1, np.int32),
        visible=np.full(length, -1, np.int32),
    )
    return Batch(
        tokens=np.zeros(length, np.int32),
        segments=np.zeros(length, np.int32),
        positions=np.zeros((length, *views.axes), np.int32),
        causal=np.ones(length, np.int32),
        loss_weight=np.zeros(length, np.float32),
        media={"image": image} if slots else {},
    )


def _place(row: Batch, encoded: Encoded, begin: int, media: int, span: int) -> None:
    """Writes an example into a row at token `begin`, its first medium being the row's medium `media`."""
    here = slice(begin, begin + len(encoded))
    row.tokens[here] = encoded.tokens
    row.segments[here] = row.segments.max() + 1 + encoded.segments
    put_positions(row.positions, begin, encoded.positions)
    row.causal[here] = encoded.causal
    row.loss_weight[here] = encoded.loss_weight
    for image in row.media.values():
        image.slot[here] = np.where(encoded.slot >= 0, encoded.slot + media * span, -1)
        image.visible[here] = np.where(encoded.visible >= 0, encoded.visible + media, -1)
