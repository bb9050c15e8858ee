"""eval.json and examples.json of a workdir while its benchmarks are run: written as each of them is done."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import NO_BENCHMARKS
from mmjax.evaluation.markup import number
from mmjax.evaluation.progress import MEASURED
from mmjax.evaluation.runs import read_examples, read_results
from mmjax.files import write_text

AGAIN = "remove it; the next `mmjax evaluate` writes it anew."


class Results:
    """The figures and examples of the benchmarks that are done, in the order of the config.

    Each has under `measured` what it was measured at: {stage, step, steps, checkpoint, options, seconds}.
    """

    def __init__(self, workdir: Path, names: Iterable[str], costs: Mapping[str, Any]):
        """names: the benchmarks of the config. costs: what else stands in eval.json: parameters, seconds.

        Raises:
          UserError: what an earlier evaluation left is damaged.
        """
        self._workdir, self._names, self._costs = workdir, list(names), costs
        file = workdir / "eval.json"
        old = read_results(file, AGAIN) if file.exists() else {}
        self._old = {name: part for name, part in old.items() if name in self._names and part}
        self._old_examples = read_examples(workdir)
        self._done: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._done)

    def keep(self, name: str, mark: Mapping[str, Any]) -> bool:
        """Takes over what eval.json has of a benchmark, if it was measured at `mark`, and tells whether it did."""
        old = self._old.get(name) or {}
        measured = {key: value for key, value in (old.get(MEASURED) or {}).items() if key != "seconds"}
        if measured != mark:
            return False
        examples = self._old_examples.get(name)
        self._done[name] = dict(old) | ({"examples": examples} if examples else {})
        return True

    def add(self, name: str, found: Mapping[str, Any], mark: Mapping[str, Any], seconds: float) -> None:
        """Takes the figures and examples of a benchmark that is done. Raises if JSON cannot hold them."""
        plain = json.loads(json.dumps(_portable(found), default=_plain))
        self._done[name] = plain | {MEASURED: {**mark, "seconds": seconds}}

    def write(self) -> None:
        """Writes both files, each whole or not at all. Raises UserError if they cannot be written."""
        found = self.all()
        examples = {name: part["examples"] for name, part in found.items() if part.get("examples")}
        figures = {name: {k: v for k, v in part.items() if k != "examples"} for name, part in found.items()}
        write_text(self._workdir / "examples.json", json.dumps(examples) + "\n")
        write_text(self._workdir / "eval.json", json.dumps(figures, indent=1) + "\n")

    def all(self) -> dict[str, Any]:
        """Name -> figures and examples, and the costs."""
        done = {name: self._done[name] for name in self._names if name in self._done}
        spent = sum(number(part[MEASURED].get("seconds")) or 0.0 for part in done.values())
        costs = {name: self._costs[name] for name in NO_BENCHMARKS}
        return {**done, **costs, "seconds": {**costs["seconds"], "evaluate": spent}}


def _portable(found: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's result with the pictures of its examples in base64."""

    def portable(value: Any) -> Any:
        data = Path(value).read_bytes() if isinstance(value, os.PathLike) else value
        return base64.b64encode(data).decode() if isinstance(data, bytes) else data

    if not found.get("examples"):
        return dict(found)
    examples = [{key: portable(value) for key, value in example.items()} for example in found["examples"]]
    return {**found, "examples": examples}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
