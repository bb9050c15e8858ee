"""Which samples make up which row: a plan made before training, from lengths alone.

Row r depends on the plan's inputs and on nothing else: not on how many rows are asked for, how many hosts
read them, or where a run resumes. So the position in the data is one number, the rows consumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.errors import UserError

OPEN_ROWS = 64  # rows being filled at once; more fill better and mix less
_VERSION = 1  # of the algorithm: part of the fingerprint


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of one source: tokens int32 [n], 0 where a sample is refused; media int32 [n]; its share of the mixture; and
    content uint64 [n], a digest of each sample (content.py), which no plan depends on."""

    tokens: np.ndarray
    media: np.ndarray
    weight: float = 1.0
    content: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Row r holds the samples [offsets[r], offsets[r + 1]) of `source` and `sample`.

    source, sample: int32, which source and which of its samples. offsets: int64 [rows + 1].
    fill: the share of the rows' token slots that hold a token.
    fingerprint: of all that the plan depends on; a run can only resume where it is the same.
    content: the same of what the samples say and show, in the order of their records; '' if that is not known.
    """

    source: np.ndarray
    sample: np.ndarray
    offsets: np.ndarray
    fill: float
    fingerprint: str
    content: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, r: int) -> list[tuple[int, int]]:
        """(source, sample) of each example in row r."""
        part = slice(self.offsets[r], self.offsets[r + 1])
        return list(zip(self.source[part].tolist(), self.sample[part].tolist(), strict=True))


def make_plan(
    lengths: Sequence[Lengths],
    rows: int | None,
    row_length: int,
    media_slots: int,
    seed: int,
    pack: bool = True,
) -> Plan:
    """Plans `rows` rows of `row_length` tokens and `media_slots` pictures.

    Samples come in epochs: every epoch of one source is a new permutation of it; an epoch of a mixture has as
    many samples as the sources together, shared out by weight, each source going on where it was.

    Args:
      rows: how many; None for one pass over all samples of all sources, whatever their weights.
      pack: whether a row holds as many examples as fit, or one.

    Raises:
      UserError: no source has a usable sample.
    """
    if not any((one.tokens > 0).any() for one in lengths):
        raise UserError("No sample is left to train on: all were refused.")
    order = _one_pass(lengths, seed) if rows is None else _endless(lengths, seed)
    closed = _pack(order, lengths, row_length, media_slots, pack)
    chosen = list(itertools.islice(closed, rows))
    flat = np.asarray([entry for row in chosen for entry in row], np.int32).reshape(-1, 2)
    offsets = np.cumsum([0, *map(len, chosen)], dtype=np.int64)
    tokens = sum(int(one.tokens[flat[flat[:, 0] == s, 1]].sum()) for s, one in enumerate(lengths))
    return Plan(
        source=flat[:, 0],
        sample=flat[:, 1],
        offsets=offsets,
        fill=tokens / (row_length * len(chosen)),
        fingerprint=_fingerprint(lengths, row_length, media_slots, seed, pack),
        content=_content(lengths),
    )


def _permutations(one: Lengths, seed: int, source: int) -> Iterator[int]:
    """The usable samples of a source, epoch after epoch."""
    usable = np.flatnonzero(one.tokens > 0)
    for epoch in itertools.count():
        yield from np.random.default_rng((seed, source, epoch)).permutation(usable).tolist()


def _one_pass(lengths: Sequence[Lengths], seed: int) -> Iterator[tuple[int, int]]:
    """Every usable sample of every source once, shuffled."""
    every = [(s, i) for s, one in enumerate(lengths) for i in np.flatnonzero(one.tokens > 0).tolist()]
    for k in np.random.default_rng((seed, len(lengths), 0)).permutation(len(every)):
        yield every[k]


def _endless(lengths: Sequence[Lengths], seed: int) -> Iterator[tuple[int, int]]:
    """(source, sample) of the mixture, epoch after epoch."""
    usable = np.asarray([(one.tokens > 0).sum() for one in lengths])
    weights = np.where(usable > 0, [one.weight for one in lengths], 0.0)
    if not weights.sum() > 0:
        raise UserError("No source with a weight above 0 has a usable sample.")
    counts = np.round(weights / weights.sum() * usable.sum()).astype(int)
    counts = np.where(weights > 0, np.maximum(counts, 1), 0)
    streams = [_permutations(one, seed, s) for s, one in enumerate(lengths)]
    for epoch in itertools.count():
        rng = np.random.default_rng((seed, len(lengths), epoch))
        for s in rng.permutation(np.repeat(np.arange(len(lengths)), counts)).tolist():
            yield s, next(streams[s])


def _pack(
    order: Iterator[tuple[int, int]],
    lengths: Sequence[Lengths],
    row_length: int,
    media_slots: int,
    pack: bool,
) -> Iterator[list[tuple[int, int]]]:
    """Best fit into a few open rows: a sample goes where it leaves the least room. A row is closed when nothing
    fits into it any more or, if a sample fits nowhere, when it is the oldest: so no sample waits for ever."""
    tokens = [one.tokens.tolist() for one in lengths]
    media = [one.media.tolist() for one in lengths]
    least_tokens = min(int(one.tokens[one.tokens > 0].min(initial=row_length)) for one in lengths)
    least_media = min(int(one.media[one.tokens > 0].min(initial=media_slots)) for one in lengths)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(OPEN_ROWS if pack else 1)]
    room = np.full(len(rows), row_length)
    slots = np.full(len(rows), media_slots)
    opened = np.zeros(len(rows), np.int64)  # the number of the first sample

    def close(k: int) -> list[tuple[int, int]]:
        row, rows[k] = rows[k], []
        room[k], slots[k] = row_length, media_slots
        return row

    for count, (s, i) in enumerate(order):
        need, pictures = tokens[s][i], media[s][i]
        k = int(np.argmin(np.where((room >= need) & (slots >= pictures), room, row_length + 1)))
        if room[k] < need or slots[k] < pictures:
            k = int(np.argmin(opened))
            yield close(k)
        if not rows[k]:
            opened[k] = count
        rows[k].append((s, i))
        room[k] -= need
        slots[k] -= pictures
        if room[k] < least_tokens or slots[k] < least_media or not pack:
            yield close(k)
    yield from (rows[k] for k in np.argsort(opened) if rows[k])


def _fingerprint(lengths, row_length: int, media_slots: int, seed: int, pack: bool) -> str:
    digest = hashlib.sha256(repr((_VERSION, OPEN_ROWS, row_length, media_slots, seed, pack)).encode())
    for one in lengths:
        digest.update(repr((len(one.tokens), float(one.weight))).encode())
        digest.update(np.ascontiguousarray(one.tokens, np.int32).tobytes())
        digest.update(np.ascontiguousarray(one.media, np.int32).tobytes())
    return digest.hexdigest()


def _content(lengths: Sequence[Lengths]) -> str:
    if any(one.content is None for one in lengths):
        return ""
    digest = hashlib.sha256()
    for one in lengths:
        digest.update(np.ascontiguousarray(one.content, "<u8"))
    return digest.hexdigest()[:32]
