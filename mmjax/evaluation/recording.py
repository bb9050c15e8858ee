"""An assistant as benchmarks are given it: its answers are kept as they come, and a bad record stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from mmjax.data.quarantine import BadRecord, TooManyBadRecords
from mmjax.data.sources import Source
from mmjax.errors import UserError
from mmjax.evaluation.answers import Answers, key_of
from mmjax.evaluation.samples import spread
from mmjax.files import DiskError
from mmjax.inference.chat import Assistant
from mmjax.inference.settings import Sampling
from mmjax.types import Sample

CHUNK = 512  # questions asked before their answers are written
MOST_REFUSED = 0.1  # share of a benchmark's records
EARLY = 10  # refused questions that may be more than that share while the benchmark has not asked them all


class RecordingAssistant:
    """An Assistant whose answers to `generate` and `score_many` are kept, and taken where they are there already.

    A record that cannot be read or asked (a damaged picture, a prompt too long) is refused: counted and named.
    `ask` and `weigh` have None in its place, `generate` an empty answer, `score_many` the score of the impossible.
    All else is the assistant's own.

    refused: id of each refused record -> why.
    """

    def __init__(self, assistant: Assistant, answers: Answers | None = None, name: str = "benchmark"):
        """answers: where they are kept; None for in memory alone. name: the benchmark's, for messages."""
        self.assistant, self.name = assistant, name
        self.refused: dict[str, str] = {}
        self._answers = answers or Answers(None, {})
        self._asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.assistant, name)

    def __call__(self, *question: Any, **more: Any) -> str:
        return self.assistant(*question, **more)

    def read(self, source: Source, limit: int) -> list[Sample]:
        """`limit` samples of a source at even distances, all for 0; bad ones are refused.

        Raises:
          TooManyBadRecords: more than MOST_REFUSED of them are bad. UserError: there is none.
        """
        bad: list[BadRecord] = []
        samples = spread(source, limit, bad.append)
        for error in bad:
            self._refuse(error.id, error.reason)
        self._check(len(bad), len(bad) + len(samples))
        if not samples:
            raise UserError(f"{self.name}: its data hold no record.")
        return samples

    def ask(self, prompts: Sequence[Sample], sampling: Sampling | None = None) -> list[str | None]:
        """As `generate`, None for what is refused. Raises TooManyBadRecords as `read` does."""
        sampling = sampling or self.assistant.sampling

        def answer(chosen: Sequence[int]) -> list[str]:
            return self.assistant.generate([prompts[i] for i in chosen], sampling)

        # What is drawn hangs on a prompt's place in the list, so that it is asked for at once.
        drawn = sampling.temperature > 0 and sampling.beams == 1
        keys = [key_of(prompt, sampling) for prompt in prompts]
        return self._collect(prompts, keys, answer, max(1, len(prompts)) if drawn else CHUNK)

    def weigh(
        self, prompts: Sequence[Sample], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray[Any, Any] | None]:
        """As `score_many`, None for what is refused. Raises TooManyBadRecords as `read` does."""

        def answer(chosen: Sequence[int]) -> list[list[float]]:
            scores = self.assistant.score_many([prompts[i] for i in chosen], [candidates[i] for i in chosen])
            return [[float(score) for score in own] for own in scores]

        keys = [key_of(prompt, list(own)) for prompt, own in zip(prompts, candidates, strict=True)]
        found = self._collect(prompts, keys, answer, CHUNK)
        return [None if own is None else np.array(own, np.float32) for own in found]

    def generate(self, prompts: Sequence[Sample], sampling: Sampling | None = None) -> list[str]:
        return [answer or "" for answer in self.ask(prompts, sampling)]

    def score_many(
        self, prompts: Sequence[Sample], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray[Any, Any]]:
        found = self.weigh(prompts, candidates)
        none = [np.full(len(own), -np.inf, np.float32) for own in candidates]
        return [n if own is None else own for own, n in zip(found, none, strict=True)]

    def _collect(
        self,
        prompts: Sequence[Sample],
        keys: Sequence[str],
        answer: Callable[[Sequence[int]], list[Any]],
        chunk: int,
    ) -> list[Any]:
        """The answers that are kept, and those of the rest, written after every `chunk` of them."""
        self._asked.update(prompt.id for prompt in prompts)
        left = [i for i, key in enumerate(keys) if key not in self._answers]
        if len(left) < len(keys):
            logging.info("%s: %d of %d answers are there already.", self.name, len(keys) - len(left), len(keys))
        for begin in range(0, len(left), chunk):
            found = self._sift(prompts, left[begin : begin + chunk], answer)
            self._answers.add((prompts[i].id, keys[i], one) for i, one in found.items())
        return [self._answers.get(key) for key in keys]

    def _sift(
        self, prompts: Sequence[Sample], chosen: Sequence[int], answer: Callable[[Sequence[int]], list[Any]]
    ) -> dict[int, Any]:
        """The answers to the chosen prompts; where one of them cannot be asked, halves are, until it is alone."""
        try:
            return dict(zip(chosen, answer(chosen), strict=True))
        except DiskError:
            raise
        except UserError as error:
            failed = error
        if len(chosen) == 1:
            self._refuse(prompts[chosen[0]].id, str(failed))
            if len(self.refused) > EARLY:
                self.check()
            return {}
        middle = len(chosen) // 2
        found = [self._sift(prompts, half, answer) for half in (chosen[:middle], chosen[middle:])]
        return found[0] | found[1]

    def _refuse(self, id: str, reason: str) -> None:
        if id not in self.refused:
            self.refused[id] = reason.removeprefix(f"{id}: ")
            logging.warning("%s: refused %s: %s", self.name, id, self.refused[id])

    def check(self) -> None:
        """Raises TooManyBadRecords if more than MOST_REFUSED of the questions asked so far were refused."""
        self._check(len(self.refused.keys() & self._asked), len(self._asked))

    def _check(self, refused: int, count: int) -> None:
        if refused > MOST_REFUSED * count:
            id, reason = list(self.refused.items())[-1]
            raise TooManyBadRecords(
                f"{self.name}: {refused} of {count} records are refused, more than a tenth. Mend them, or leave "
                f"them out of the benchmark's data. The last is {id}: {reason}"
            )


def recording(assistant: Assistant | RecordingAssistant) -> RecordingAssistant:
    """The assistant itself if it records already; one that records in memory alone else."""
    return assistant if isinstance(assistant, RecordingAssistant) else RecordingAssistant(assistant)


def answered(*columns: Sequence[Any]) -> tuple[list[Any], ...]:
    """Columns of equal length without the rows in which one has None: what was refused in any way is left out."""
    rows = [row for row in zip(*columns, strict=True) if all(value is not None for value in row)]
    return tuple(map(list, zip(*rows, strict=True))) if rows else tuple([] for _ in columns)
