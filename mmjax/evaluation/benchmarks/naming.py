"""Naming by likelihood: which of several names a model finds likeliest for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import open_source
from mmjax.errors import UserError
from mmjax.evaluation.recording import answered, recording
from mmjax.evaluation.samples import asked, moved_on
from mmjax.inference.chat import Assistant


def evaluate(
    assistant: Assistant, *, data_dir: str, test: str, question: str, choices: int, limit: int
) -> dict[str, Any]:
    """Each picture's own name against `choices` - 1 names of others, drawn once for all models and seeds.

    Args:
      test: a corpus of captioned pictures. question: what stands after the picture. limit: pictures, 0 for all.

    Returns:
      accuracy: share of pictures whose own name has the highest log-likelihood. accuracy_norm: the highest one per
      byte of the name, so that long names are not at a disadvantage (lm-evaluation-harness, `acc_norm`).
      shuffled, shuffled_norm: the same, each picture's pixels replaced by another's. chance: 1 / choices. count.
    """
    recorder = recording(assistant)
    samples = recorder.read(open_source(test, "", data_dir), limit)
    names = [sample.turns[1].text for sample in samples]
    candidates = _candidates(names, choices)
    scores = recorder.weigh([asked(sample, question) for sample in samples], candidates)
    samples, candidates, scores = answered(samples, candidates, scores)
    blind = recorder.weigh([asked(sample, question) for sample in moved_on(samples)], candidates)
    candidates, scores, blind = answered(candidates, scores, blind)
    sizes = [np.array([len(name.encode()) for name in own]) for own in candidates]
    shares = {}
    for name, found in {"accuracy": scores, "shuffled": blind}.items():
        shares[name] = _first_wins(found)
        shares[f"{name}_norm"] = _first_wins([own / size for own, size in zip(found, sizes, strict=True)])
    return shares | {"chance": 1 / choices, "count": len(scores)}


def _candidates(names: Sequence[str], choices: int) -> list[list[str]]:
    """Each name, first, with others that differ from it and from one another."""
    rng, distinct = np.random.default_rng(0), sorted(set(names))
    if len(distinct) < choices:
        raise UserError(f"choices: {choices} of {len(distinct)} names cannot be.")
    found = []
    for name in names:
        others = [other for other in distinct if other != name]
        found.append([name, *(others[i] for i in rng.choice(len(others), choices - 1, replace=False))])
    return found


def _first_wins(scores: Sequence[np.ndarray]) -> float:
    return float(np.mean([(own[0] > own[1:]).all() for own in scores]))
