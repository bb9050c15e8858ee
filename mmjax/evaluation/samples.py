"""Samples for benchmarks: a part of them, their questions alone, and the same with other pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mmjax.data.quarantine import BadRecord
from mmjax.data.sources import Source
from mmjax.types import Sample, Turn


def spread(source: Source, limit: int, refuse: Callable[[BadRecord], None]) -> list[Sample]:
    """`limit` samples at even distances; all of them for 0. Bad records go to `refuse`."""
    count = len(source)
    kept = min(limit or count, count)
    samples = []
    for i in range(kept):
        try:
            samples.append(source[i * count // kept])
        except BadRecord as error:
            refuse(error)
    return samples


def asked(sample: Sample, question: str) -> Sample:
    """The sample's pictures with a question behind them, '' for none, and no answer."""
    text = "<image>" * len(sample.images) + (f"\n{question}" if question else "")
    return dataclasses.replace(sample, turns=(Turn("user", text),))


def moved_on(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the pictures of another: pictures move on by half their number."""
    pictures = list(dict.fromkeys(sample.images for sample in samples))
    place = {shown: i for i, shown in enumerate(pictures)}
    other = [pictures[(i + len(pictures) // 2) % len(pictures)] for i in range(len(pictures))]
    return [dataclasses.replace(sample, images=other[place[sample.images]]) for sample in samples]
