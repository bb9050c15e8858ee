"""`mmjax compare`: evaluated workdirs side by side as Markdown, and inside a Markdown file with two drawings."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmjax.errors import MissingFile, UserError
from mmjax.evaluation.curves import loss_curves
from mmjax.evaluation.markup import number
from mmjax.evaluation.runs import System, plain_paths, read_systems
from mmjax.evaluation.sheet import contact_sheet
from mmjax.files import make_folder, write_text

BEGIN, END = "<!-- mmjax compare -->", "<!-- end -->"
SHARES = {"accuracy", "exact", "f1", "shuffled", "chance", "question_only", "precision", "recall"}
NONE = "–"
OPTIONS_APART = ("type", "stage", "examples")  # of a benchmark: what does not change its figures' meaning
Row = tuple[tuple[str, ...], list[Mapping[str, Any]]]  # first cells, and the figures of each run that has them


def compare(workdirs: Sequence[str | os.PathLike[str]]) -> str:
    """The figures of evaluated workdirs as Markdown; runs that differ in the seed alone are one system, one row.

    Raises:
      MissingFile, UserError: as runs.read_systems.
    """
    return _markdown(read_systems(workdirs))


def compare_into(file: str | os.PathLike[str], workdirs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Replaces what stands between the marks BEGIN and END in a Markdown file by `compare` and two pictures.

    The pictures lie beside the file, in a folder named after its stem: `curves.svg`, the training losses, and
    `examples.svg`, pictures with each system's answer, where runs kept examples that they share.

    Returns:
      The paths written.

    Raises:
      MissingFile, UserError: as runs.read_systems; no such file, or not exactly one pair of marks in it.
    """
    file = Path(file)
    if not file.exists():
        raise MissingFile(f"{file}: no such file; make one with the lines {BEGIN} and {END} in it.")
    before, after = _around_marks(file)
    systems = read_systems(workdirs)
    folder = file.with_suffix("")
    drawings = {
        "curves.svg": ("Training loss of every stage and run", loss_curves(systems)),
        "examples.svg": ("Pictures with each system's answer", contact_sheet(systems)),
    }
    parts, written = [_markdown(systems)], []
    for name, (title, drawing) in drawings.items():
        if drawing is None:
            continue
        make_folder(folder)
        write_text(folder / name, drawing)
        written.append(folder / name)
        parts.append(f"![{title}]({quote(folder.name)}/{name})")
    write_text(file, before + "\n" + "\n\n".join(parts) + "\n\n" + after)
    return [file, *written]


def _around_marks(file: Path) -> tuple[str, str]:
    """The text up to the end of BEGIN's line, and from END's line on."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:  # whatever its line ends are, they stay
            lines = opened.read().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into: {file} cannot be read: {error}") from error
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END))
    if len(begins) != 1:
        raise UserError(f"{file}: wants one line {BEGIN}, has {len(begins)}.")
    if len(ends) != 1:
        raise UserError(f"{file}: wants one line {END}, has {len(ends)}.")
    if ends < begins:
        raise UserError(f"{file}: {END} in line {ends[0] + 1} stands before {BEGIN} in line {begins[0] + 1}.")
    return "".join(lines[: begins[0] + 1]), "".join(lines[ends[0] :])


# The tables.


def _markdown(systems: Sequence[System]) -> str:
    names = list(dict.fromkeys(name for s in systems for run in s.runs for name in run.benchmarks))
    found = {
        name: {s.name: [run.benchmarks[name] for run in s.runs if name in run.benchmarks] for s in systems}
        for name in names
    }
    by_figures: dict[frozenset[str], list[str]] = {}
    for name in names:
        keys = frozenset(key for runs in found[name].values() for run in runs for key in _figures(run))
        by_figures.setdefault(keys, []).append(name)
    parts = [_seeds(systems), *_unlike_options(systems, names)]
    for figures, alike in by_figures.items():
        rows = [((_spoken(name), s), runs) for name in alike for s, runs in found[name].items() if runs]
        parts += _table(("benchmark", "system"), rows, systems) if figures else []
        for name in alike:
            parts += _kinds(name, found[name], systems)
    return "\n\n".join([*parts, _costs(systems)])


def _seeds(systems: Sequence[System]) -> str:
    """How many runs stand behind each row."""
    several = any(len(s.runs) > 1 for s in systems)
    each = []
    for s in systems:
        seeds = ", ".join(str(run.seed) for run in s.runs)
        each.append(f"{_cell(s.name)} {len(s.runs)} (seed{'s'[: len(s.runs) > 1]} {seeds})")
    note = "\nOf several: mean ± sample standard deviation, one figure where all are equal." if several else ""
    return f"Runs: {', '.join(each)}.{note}"


def _unlike_options(systems: Sequence[System], names: Iterable[str]) -> list[str]:
    """Says which benchmarks were run with options that are not the same in all runs."""
    runs = [run for s in systems for run in s.runs]
    unlike = []
    for name in names:
        given = [
            plain_paths(run.config["evaluation"][name], str(run.config.get("data_dir") or ""))
            for run in runs
            if name in run.benchmarks and name in (run.config.get("evaluation") or {})
        ]
        keys = sorted({key for options in given for key in options} - set(OPTIONS_APART))
        keys = [key for key in keys if any(options.get(key) != given[0].get(key) for options in given)]
        if keys:
            unlike.append(f"{_spoken(name)} ({', '.join(keys)})")
    return [f"Not asked alike in all runs: {'; '.join(unlike)}."] if unlike else []


def _kinds(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]], systems: Sequence[System]) -> list[str]:
    """The table of a benchmark's kinds, if it has any."""
    kinds = list(dict.fromkeys(kind for runs in found.values() for run in runs for kind in run.get("kinds") or ()))
    rows = [
        (
            (_spoken(kind), s.name),
            [run["kinds"][kind] for run in found[s.name] if kind in (run.get("kinds") or ())],
        )
        for kind in kinds
        for s in systems
        if found[s.name]
    ]
    return _table((_spoken(name), "system"), rows, systems) if rows else []


def _table(heads: tuple[str, str], rows: Sequence[Row], systems: Sequence[System]) -> list[str]:
    """A table with a column per figure; counts that all systems share are said below it instead."""
    sizes = {s.name: len(s.runs) for s in systems}
    lines = [list(cells) for cells, _ in rows]
    columns, counts = [], []
    for key in dict.fromkeys(key for _, runs in rows for run in runs for key in _figures(run)):
        column = [[_figures(run).get(key) for run in runs] for _, runs in rows]
        if shared := _shared([cells[0] for cells, _ in rows], column):
            counts.append(f"{_spoken(key)}: {shared}")
            continue
        head, form = _form(key, [value for values in column for value in values if value is not None])
        columns.append(head)
        for line, values in zip(lines, column, strict=True):
            line.append(_spread(values, form, sizes[line[1]]))
    return [_layout([*heads, *columns], lines, len(heads)), *([_cell("; ".join(counts)) + "."] if counts else [])]


def _shared(names: Sequence[str], column: Sequence[Sequence[float | None]]) -> str | None:
    """A count that is the same in all rows of one name: '188', or 'captions 188, easy vqa 9,673'."""
    each: dict[str, set[float]] = {name: set() for name in names}
    for name, values in zip(names, column, strict=True):
        each[name].update(value for value in values if value is not None)
    if not all(len(values) <= 1 and set(map(type, values)) <= {int} for values in each.values()):
        return None
    said = {name: f"{values.pop():,}" for name, values in each.items() if values}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _costs(systems: Sequence[System]) -> str:
    """Seconds and parameters."""

    def values(system: System, *path: str) -> list[Any]:
        found: list[Any] = [run.results for run in system.runs]
        for key in path:
            found = [value.get(key) if isinstance(value, Mapping) else None for value in found]
        return [number(value) for value in found]

    parameters = [run.results.get("parameters") or {} for s in systems for run in s.runs]
    stages = dict.fromkeys(stage for counted in parameters for stage in counted.get("trained") or ())
    columns = {
        "training, s": ("seconds", "train"),
        "evaluation, s": ("seconds", "evaluate"),
        "parameters": ("parameters", "total"),
        **{f"trained in {stage}": ("parameters", "trained", stage) for stage in stages},
    }
    rows = [
        [s.name, *(_spread(values(s, *path), _whole, len(s.runs)) for path in columns.values())] for s in systems
    ]
    return _layout(["system", *columns], rows, 1)


def _layout(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table; all columns but the first `words` are numbers and stand at the right."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    lines = [[_cell(text) for text in heads], rule, *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# The numbers.


def _figures(result: Mapping[str, Any]) -> dict[str, float | int]:
    return {key: value for key in result if (value := number(result[key])) is not None}


def _form(key: str, values: Sequence[float]) -> tuple[str, Callable[[float], str]]:
    """A column's head, and how its numbers are written."""
    is_share = key in SHARES or not SHARES.isdisjoint(key.split("_"))
    if is_share and all(0 <= value <= 1 for value in values):
        return f"{_spoken(key)}, %", lambda value: f"{100 * value:.1f}"
    if "perplexity" in key:
        return _spoken(key), lambda value: f"{value:,.1f}"
    if all(isinstance(value, int) for value in values):
        return _spoken(key), _whole
    decimals = 2 if max(map(abs, values)) >= 1 else 4
    return _spoken(key), lambda value: f"{value:,.{decimals}f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _spread(values: Sequence[float | None], form: Callable[[float], str], runs: int) -> str:
    """'12.3', of several that differ 'mean ± standard deviation', with how many where a run has none."""
    there = [value for value in values if value is not None]
    if not there:
        return NONE
    few = f" ({len(there)} of {runs})" if len(there) < runs else ""
    if len(set(there)) == 1:
        return form(there[0]) + few
    return f"{form(statistics.fmean(there))} ± {form(statistics.stdev(there))}{few}"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _cell(text: str) -> str:
    """Words that Markdown shows as they are."""
    for sign in "\\|<>*`[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
