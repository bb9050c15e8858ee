"""Evaluated workdirs as they lie on disk, and which of them are one system trained with several seeds."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import MissingFile, UserError

ANYWAY = ("seed", "data_dir", "evaluation", "keep", "wandb")  # keys of a config that do not tell systems apart
NO_BENCHMARKS = ("parameters", "seconds")  # what else stands in eval.json


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated workdir: its resolved config, and what is in its eval.json."""

    workdir: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def benchmarks(self) -> dict[str, Mapping[str, Any]]:
        """Name -> figures, in the order in which they were run."""
        return {k: v for k, v in self.results.items() if isinstance(v, Mapping) and k not in NO_BENCHMARKS}

    def examples(self) -> dict[str, list[dict[str, Any]]]:
        """Benchmark -> examples as in report.py, pictures in base64; {} of a run that kept none."""
        file = self.workdir / "examples.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage's metrics.jsonl."""
        return list(json_lines(self.workdir / stage / "metrics.jsonl"))


@dataclasses.dataclass(frozen=True)
class System:
    """Runs of one config that differ in the seed."""

    name: str
    runs: tuple[Run, ...]


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """The run of a workdir.

    Raises:
      MissingFile: no run there, or not evaluated yet.
      UserError: one of its files is no JSON.
    """
    workdir = Path(workdir)
    remedies = {
        "config.json": f"no run there; `mmjax train --config ... --workdir {workdir}` makes one.",
        "eval.json": f"not evaluated yet; `mmjax evaluate --workdir {workdir}` does it.",
    }
    found = []
    for name, remedy in remedies.items():
        file = workdir / name
        if not file.exists():
            raise MissingFile(f"{file}: {remedy}")
        try:
            found.append(json.loads(file.read_text("utf-8")))
        except ValueError as error:
            raise UserError(f"{file}: damaged ({error}); {remedy.partition('; ')[2]}") from error
    return Run(workdir, *found)


def read_systems(workdirs: Sequence[str | os.PathLike[str]]) -> list[System]:
    """The runs of the workdirs by system, both in the order given.

    A system's name is the longest common prefix of its workdirs' names, without 'seed', '-' and '_' at its end;
    where two systems would have one name, or one none, parent folders are part of all names.

    Raises:
      MissingFile, UserError: as read_run; or a workdir is given twice.
    """
    runs = [read_run(workdir) for workdir in workdirs]
    paths = [run.workdir.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: given twice; a run counts once.")
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(json.dumps(_essence(run.config), sort_keys=True), []).append(i)
    depth, most = 1, max(len(path.parts) for path in paths)
    while True:
        names = [_common_name(["/".join(paths[i].parts[-depth:]) for i in members]) for members in groups.values()]
        if all(names) and len(set(names)) == len(names):
            break
        if depth == most:
            raise UserError(
                f"the workdirs give systems the names {', '.join(map(repr, names))}; rename them so that each "
                "system has a name of its own: SYSTEM-0, SYSTEM-1, ..."
            )
        depth += 1
    return [
        System(name, tuple(runs[i] for i in members)) for name, members in zip(names, groups.values(), strict=True)
    ]


def plain_paths(value: Any, data_dir: str) -> Any:
    """A part of a config whose strings do not say where `data_dir` lies."""
    if isinstance(value, Mapping):
        return {key: plain_paths(inner, data_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_paths(inner, data_dir) for inner in value]
    if isinstance(value, str) and data_dir and (value + "/").startswith(data_dir.rstrip("/") + "/"):
        return value[len(data_dir.rstrip("/")) :].lstrip("/")
    return value


def _essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the system: all but the seed and the places of files."""
    kept = {key: value for key, value in config.items() if key not in ANYWAY}
    kept["load"] = [[part, Path(source).name] for part, source in config.get("load") or ()]
    return plain_paths(kept, str(config.get("data_dir") or ""))


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    first, last = min(names), max(names)  # what these begin with, all between them do
    same = (i for i in range(len(first)) if first[i] != last[i : i + 1])
    prefix = first[: next(same, len(first))]
    if any(name[len(prefix) : len(prefix) + 1].isdigit() for name in names):
        prefix = prefix.rstrip("0123456789")  # of run-10 and run-11, run
    return re.sub(r"[-_/]*(seed)?[-_/]*$", "", prefix)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that parse: the last may be half written."""
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value
