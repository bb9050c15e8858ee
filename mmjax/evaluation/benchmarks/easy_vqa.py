"""easy-vqa: shapes and colours in small pictures, beside the baselines that tell sight from guessing."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import open_source
from mmjax.evaluation.recording import RecordingAssistant, answered, recording
from mmjax.evaluation.samples import moved_on
from mmjax.inference.chat import Assistant
from mmjax.inference.settings import Sampling
from mmjax.types import Sample

SAMPLING = Sampling(max_new=6)


def evaluate(
    assistant: Assistant, *, data_dir: str, train: str, test: str, limit: int, examples: int
) -> dict[str, Any]:
    """Exact match of greedy answers on the test questions, each asked alone; white space around them is no part.

    Args:
      train, test: corpora of single questions, as for sources.open_source. limit: test questions, 0 for all.
      examples: how many questions to return with picture and answer, for the report.

    Returns:
      accuracy: by the model. shuffled: by the model with each question about another picture's pixels.
      question_only: by the most frequent answer of the training split to the same question.
      kinds: the same three and a count by kind of question. examples: see evaluation/report.py.
    """
    recorder = recording(assistant)
    trained, asked = (
        recorder.read(open_source(path, "", data_dir), count) for path, count in ((train, 0), (test, limit))
    )
    asked, given = answered(asked, _ask(recorder, asked))
    asked, given, shuffled = answered(asked, given, _ask(recorder, moved_on(asked)))
    answers = [_answer(sample) for sample in asked]
    found = {"accuracy": given, "question_only": _guess(trained, asked), "shuffled": shuffled}
    right = {
        name: np.array([given == answer for given, answer in zip(given, answers, strict=True)])
        for name, given in found.items()
    }
    kind = np.array([sample.id.rpartition("/")[2] for sample in asked])
    kinds = {
        str(k): {name: float(hits[kind == k].mean()) for name, hits in right.items()}
        | {"count": int((kind == k).sum())}
        for k in dict.fromkeys(kind)
    }
    chosen = np.random.default_rng(0).permutation(len(asked))
    wrong = [i for i in chosen if not right["accuracy"][i]][: examples // 3]
    chosen = [*wrong, *(i for i in chosen if right["accuracy"][i])][:examples]
    return {name: float(hits.mean()) for name, hits in right.items()} | {
        "count": len(asked),
        "kinds": kinds,
        "examples": [
            {
                "id": asked[i].id,
                "image": asked[i].images[0],
                "question": _question(asked[i]),
                "answer": answers[i],
                "prediction": found["accuracy"][i],
                "correct": bool(right["accuracy"][i]),
            }
            for i in chosen
        ],
    }


def _question(sample: Sample) -> str:
    return sample.turns[0].text.replace("<image>", "").strip()


def _answer(sample: Sample) -> str:
    return sample.turns[1].text.strip()


def _ask(assistant: RecordingAssistant, samples: Sequence[Sample]) -> list[str | None]:
    prompts = [Sample(sample.id, sample.turns[:1], sample.images) for sample in samples]
    return [answer and answer.strip() for answer in assistant.ask(prompts, SAMPLING)]


def _guess(trained: Sequence[Sample], asked: Sequence[Sample]) -> list[str]:
    """The most frequent answer of the training split to each question."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for sample in trained:
        counts[_question(sample)][_answer(sample)] += 1
    overall = sum(counts.values(), collections.Counter())
    return [(counts.get(_question(s)) or overall).most_common(1)[0][0] for s in asked]
