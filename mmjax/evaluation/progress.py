"""How far a workdir's training came, and whether its figures were measured at the end of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.evaluation.markup import number
from mmjax.files import json_lines

MEASURED = "measured"  # of a benchmark in eval.json: {stage, step, steps, ...}, what it was measured at


def stage_metrics(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl: of training, with `loss` and `seconds`, and of validation, without."""
    lines = json_lines(workdir / stage / "metrics.jsonl")
    return [line for line in lines if number(line.get("step")) is not None]


def training_seconds(workdir: Path) -> float:
    """Seconds spent in the stages' steps so far, saves and stops aside from compiling included."""
    total = 0.0
    for file in workdir.glob("*/metrics.jsonl"):
        told = [line["seconds"] for line in json_lines(file) if number(line.get("seconds")) is not None]
        total += told[-1] if told else 0.0
    return total


def newest_checkpoint(workdir: Path, stage: str) -> Path | None:
    """The folder of a stage's newest saved step; nothing of it is read."""
    folder = workdir / stage / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return max(steps, key=lambda path: int(path.name), default=None)


def steps_done(workdir: Path, stage: str) -> int | None:
    """The newest saved step of a stage; where none is kept, that of its last metrics; None without either."""
    if newest := newest_checkpoint(workdir, stage):
        return int(newest.name)
    lines = stage_metrics(workdir, stage)
    return lines[-1]["step"] if lines else None


def shortfall(workdir: Path, config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """What keeps a run's figures from being those of its whole training: 'step 200 of 1,000'; '' if nothing.

    Args:
      config, results: what is in config.json and eval.json. Where eval.json does not say at which step it was
        measured, that was at the newest checkpoint, unless that one is younger.
    """
    planned = {name: number((config.get(name) or {}).get("steps")) for name in config.get("stages") or ()}
    planned = {name: steps for name, steps in planned.items() if steps}
    done = {name: steps_done(workdir, name) for name in planned}
    marks = [part[MEASURED] for part in results.values() if isinstance(part, Mapping) and part.get(MEASURED)]
    at = [(mark.get("stage"), number(mark.get("step"))) for mark in marks]
    at = [(stage, step) for stage, step in at if stage in planned and step is not None]
    trained = any(step is not None for step in done.values())
    if trained or not at:
        at += [(stage, step) for stage, step in done.items() if step is not None]
    goals = {stage: max(steps, done[stage] or 0) for stage, steps in planned.items()}
    short = [(step / goals[stage], stage, step) for stage, step in at if step < goals[stage]]
    if short:
        _, stage, step = min(short)
        return (f"{stage}, " if len(planned) > 1 else "") + f"step {step:,} of {goals[stage]:,}"
    if missing := [stage for stage, step in done.items() if step is None and (trained or not at)]:
        return f"{missing[-1]} not begun" if trained else "no checkpoint, no metrics"
    if not marks and trained and _is_older(workdir, results, list(planned)[-1]):
        return f"measured before step {done[list(planned)[-1]]:,}"
    return ""


def _is_older(workdir: Path, results: Mapping[str, Any], stage: str) -> bool:
    """Whether eval.json, which does not say what it measured, is older than the stage's newest checkpoint."""
    then, newest = number((results.get("seconds") or {}).get("train")), newest_checkpoint(workdir, stage)
    if newest is None or (then and then == training_seconds(workdir)):  # a copy has the times of its copying
        return False
    return (workdir / "eval.json").stat().st_mtime < newest.stat().st_mtime
