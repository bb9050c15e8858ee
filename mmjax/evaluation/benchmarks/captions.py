"""Greedy captions of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import open_source
from mmjax.evaluation.samples import asked, moved_on, spread
from mmjax.evaluation.scores import token_f1
from mmjax.inference.chat import Assistant, Sampling
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
      exact: share of captions equal to the reference, letter case aside. f1: mean token F1 (scores.py).
      shuffled_f1: of captions of another picture. count. examples.
    """
    samples = spread(open_source(test, "", data_dir), limit)
    references = [sample.turns[1].text for sample in samples]
    captions = _captions(assistant, samples, question)
    blind = _captions(assistant, moved_on(samples), question)
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


def _captions(assistant: Assistant, samples: Sequence[Sample], question: str) -> list[str]:
    prompts = [asked(sample, question) for sample in samples]
    return [caption.strip() for caption in assistant.generate(prompts, SAMPLING)]
