"""Greedy captions of held-out pictures."""

from __future__ import annotations

from typing import Any

from mmjax.data.sources import open_source
from mmjax.inference.chat import Assistant, Sampling
from mmjax.types import Sample

SAMPLING = Sampling(max_new=24)


def evaluate(assistant: Assistant, *, data_dir: str, test: str, examples: int) -> dict[str, Any]:
    """Captions by the prompt `<image>` alone, as in pre-training.

    Returns:
      exact: share of captions equal to the reference, letter case aside. count. examples: for the report.
    """
    source = open_source(test, "", data_dir)
    samples = [source[i] for i in range(len(source))]
    prompts = [Sample(s.id, s.turns[:1], s.images) for s in samples]
    captions = [caption.strip() for caption in assistant.generate(prompts, SAMPLING)]
    references = [sample.turns[1].text for sample in samples]
    hits = [c.lower() == r.lower() for c, r in zip(captions, references, strict=True)]
    every = max(1, len(samples) // max(1, examples))
    return {
        "exact": sum(hits) / len(hits),
        "count": len(hits),
        "examples": [
            {"id": s.id, "image": s.images[0], "reference": r, "prediction": c}
            for s, r, c in list(zip(samples, references, captions, strict=True))[::every][:examples]
        ],
    }
