"""Greedy captions of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import open_source
from mmjax.evaluation.recording import RecordingAssistant, answered, recording
from mmjax.evaluation.samples import asked, moved_on
from mmjax.evaluation.scores import token_f1
from mmjax.inference.chat import Assistant
from mmjax.inference.settings import Sampling
from mmjax.types import Sample

SAMPLING = Sampling(max_new=24)


def evaluate(
    assistant: Assistant, *, data_dir: str, test: str, question: str, limit: int, examples: int
) -> dict[str, Any]:
    """Greedy answers to a question about each picture, against its name.

    Args:
      test: a corpus of captioned pictures. question: what stands after the picture; '' for the picture alone, as
        in pre-training. limit: how many pictures, 0 for all. examples: how many to return for the report.

    Returns:
      exact: share of captions equal to the reference, letter case and white space around aside. f1: mean token F1
      (scores.py). shuffled_f1: of captions of another picture. count. examples.
    """
    recorder = recording(assistant)
    samples = recorder.read(open_source(test, "", data_dir), limit)
    samples, captions = answered(samples, _captions(recorder, samples, question))
    blind = _captions(recorder, moved_on(samples), question)
    samples, captions, blind = answered(samples, captions, blind)
    references = [sample.turns[1].text.strip() for sample in samples]
    hits = [c.lower() == r.lower() for c, r in zip(captions, references, strict=True)]
    every = max(1, len(samples) // max(1, examples))
    return {
        "exact": float(np.mean(hits)),
        "f1": float(np.mean(list(map(token_f1, captions, references)))),
        "shuffled_f1": float(np.mean(list(map(token_f1, blind, references)))),
        "count": len(hits),
        "examples": [
            {"id": s.id, "image": s.images[0], "reference": r, "prediction": c}
            for s, r, c in list(zip(samples, references, captions, strict=True))[::every][:examples]
        ],
    }


def _captions(assistant: RecordingAssistant, samples: Sequence[Sample], question: str) -> list[str | None]:
    prompts = [asked(sample, question) for sample in samples]
    return [caption and caption.strip() for caption in assistant.ask(prompts, SAMPLING)]
