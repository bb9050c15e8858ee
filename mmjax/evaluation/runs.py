"""Evaluated workdirs as they lie on disk, and which of them are one system trained with several seeds."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.config import NO_BENCHMARKS
from mmjax.errors import MissingFile, UserError
from mmjax.evaluation.progress import MEASURED, shortfall, stage_metrics
from mmjax.files import json_object
from mmjax.typed import check_types

ANYWAY = ("seed", "data_dir", "evaluation", "keep", "wandb")  # keys of a config that do not tell systems apart
LARGEST_EXAMPLES = 1 << 30  # bytes of examples.json, which holds pictures
Sections = Mapping[str, Mapping[str, Any]]
CONFIG_TYPES = {
    "stages": list[str] | None,
    "load": list[tuple[str, str]] | None,
    "evaluation": Sections | None,
    "data_dir": str | None,
}
STAGE_TYPES = {"steps": int, "losses": Sections | None}
RESULT_TYPES = {"kinds": Sections | None, MEASURED: Mapping[str, Any] | None, "trained": Mapping[str, Any] | None}


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
        """As read_examples."""
        return read_examples(self.workdir)

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage's metrics.jsonl."""
        return stage_metrics(self.workdir, stage)

    @functools.cached_property
    def shortfall(self) -> str:
        """What keeps it from being a whole run, '' if nothing (progress.py)."""
        return shortfall(self.workdir, self.config, self.results)


@dataclasses.dataclass(frozen=True)
class System:
    """Runs of one config that differ in the seed; those that are not finished apart, by the step they came to."""

    name: str
    runs: tuple[Run, ...]


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """The run of a workdir.

    Raises:
      MissingFile: no run there, or not evaluated yet.
      UserError: one of its files is no JSON.
    """
    workdir = Path(workdir)
    config, results = workdir / "config.json", workdir / "eval.json"
    makes = f"`mmjax train --config ... --workdir {workdir}` makes one."
    measures = f"`mmjax evaluate --workdir {workdir}` does it."
    if not config.exists():
        raise MissingFile(f"{config}: no run there; {makes}")
    if not results.exists():
        raise MissingFile(f"{results}: not evaluated yet; {measures}")
    return Run(workdir, _read_config(config, makes), read_results(results, measures))


def _read_config(file: Path, remedy: str) -> dict[str, Any]:
    config = _undamaged(file, remedy, CONFIG_TYPES)
    stages = config.get("stages") or ()
    _check(config, dict.fromkeys(stages, Mapping[str, Any] | None), file, remedy)
    for name in stages:
        _check(config.get(name) or {}, STAGE_TYPES, f"{file}.{name}", remedy)
    return config


def read_results(file: Path, remedy: str) -> dict[str, Any]:
    """What is in an eval.json. Raises UserError, with the remedy, if it is damaged or of another shape."""
    found = _undamaged(file, remedy, {})
    _check(found, dict.fromkeys(found, Mapping[str, Any] | None), file, remedy)
    for name, part in found.items():
        _check(part or {}, RESULT_TYPES, f"{file}.{name}", remedy)
    return found


def read_examples(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """Benchmark -> examples as in report.py, pictures in base64; {} of a run that kept none.

    Raises:
      UserError: examples.json is damaged or of another shape.
    """
    file, remedy = workdir / "examples.json", "remove it; the next `mmjax evaluate` that measures writes it anew."
    found = _undamaged(file, remedy, {}, LARGEST_EXAMPLES) if file.exists() else {}
    _check(found, dict.fromkeys(found, list[Mapping[str, Any]]), file, remedy)
    return found


def _undamaged(file: Path, remedy: str, types: Mapping[str, Any], *largest: int) -> dict[str, Any]:
    try:
        found = json_object(file, *largest)
    except UserError as error:
        raise UserError(f"{file}: damaged ({str(error).removeprefix(f'{file}: ')}); {remedy}") from error
    _check(found, types, file, remedy)
    return found


def _check(values: Mapping[str, Any], types: Mapping[str, Any], where: str | Path, remedy: str) -> None:
    try:
        check_types(values, types, str(where))
    except UserError as error:
        raise UserError(f"{error} It is damaged; {remedy}") from error


def read_systems(workdirs: Sequence[str | os.PathLike[str]]) -> list[System]:
    """The runs of the workdirs by system, both in the order given.

    A system's name is the longest common prefix of its workdirs' names, without 'seed', '-' and '_' at its end;
    where two systems would have one name, or one none, parent folders are part of all names. What keeps runs from
    being whole stands behind it: 'llava-2 (step 200 of 1,000)'.

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
        groups.setdefault(json.dumps([_essence(run.config), run.shortfall], sort_keys=True), []).append(i)
    depth, most = 1, max(len(path.parts) for path in paths)
    while True:
        names = [_common_name(["/".join(paths[i].parts[-depth:]) for i in members]) for members in groups.values()]
        if all(names) and len(set(names)) == len(names):
            short = [runs[members[0]].shortfall for members in groups.values()]
            names = [name + (f" ({why})" if why else "") for name, why in zip(names, short, strict=True)]
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
