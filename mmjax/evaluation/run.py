"""`mmjax evaluate`: runs a config's benchmarks on what its workdir has trained, and writes the results down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from tqdm import tqdm

from mmjax import tree
from mmjax.config import Benchmark, Config, build_model, find_benchmarks
from mmjax.errors import MissingFile, UserError
from mmjax.evaluation.answers import Answers
from mmjax.evaluation.progress import training_seconds
from mmjax.evaluation.recording import RecordingAssistant
from mmjax.evaluation.report import write_report
from mmjax.evaluation.results import Results
from mmjax.files import DiskError, check_writable
from mmjax.inference.chat import Assistant
from mmjax.inference.load import load
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.seal import MANIFEST, find_fault
from mmjax.training.setup import parameter_shapes
from mmjax.training.trained import last_trained
from mmjax.workdir import keep_tokenizer, load_config, read_raw


def evaluate(workdir: str | Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Runs every benchmark of the config's `evaluation` section: name -> dict(type=function, stage=, **options).

    A benchmark is a function of (assistant, data_dir=, **options) that returns a dict of figures, perhaps with
    `examples` for the report. Writes `eval.json` (the figures), `examples.json` and `report.html` as each is done,
    and answers as they come (answers.py): a stopped evaluation goes on where it stood. What eval.json has of the
    same options at the same checkpoint is not measured again. One that fails does not keep the others from it.

    Args:
      trust: packages, besides mmjax, that benchmarks and parts of the model may come from.

    Raises:
      UserError: the config has no benchmarks, or one with a wrong or missing option; the workdir cannot be
        written. Or, after all others are done, what a benchmark raised, with its name.
    """
    workdir = Path(workdir)
    config = load_config(workdir, trust)
    if not config.evaluation:
        raise UserError(f"{workdir}: its config has no `evaluation` section, nothing to run.")
    benchmarks = find_benchmarks(config)
    check_writable(workdir)
    parameters = _parameters(config, keep_tokenizer(config.tokenizer, workdir).vocab_size)
    costs = {"parameters": parameters, "seconds": {"train": training_seconds(workdir)}}
    results = Results(workdir, benchmarks, costs)
    marks = {stage: _standing(config, workdir, stage) for stage in {one.stage for one in benchmarks.values()}}
    due = {name: {**marks[one.stage], "options": dict(one.options)} for name, one in benchmarks.items()}
    for name in [name for name, mark in due.items() if results.keep(name, mark)]:
        del due[name]
        logging.info(
            "%s: measured already at this checkpoint with these options; remove eval.json for anew.", name
        )
    failures = _run({name: benchmarks[name] for name in due}, due, results, workdir, trust)
    found = results.all()
    if results:  # where every benchmark failed, what an earlier evaluation left stays as it is
        results.write()
        found["report"] = str(write_report(workdir, workdir.name, read_raw(workdir), found))
    if failures:
        _raise(failures)
    return found


def _run(
    benchmarks: Mapping[str, Benchmark],
    marks: Mapping[str, Mapping[str, Any]],
    results: Results,
    workdir: Path,
    trust: Sequence[str],
) -> dict[str, Exception]:
    """Runs benchmarks, and writes the results after each; returns what those raised that failed."""
    failures: dict[str, Exception] = {}
    assistants: dict[str | None, Assistant] = {}
    bar = tqdm(benchmarks.items(), desc="evaluate", unit=" benchmarks")
    for name, benchmark in bar:
        bar.set_postfix_str(name)
        begun = time.perf_counter()
        try:
            if benchmark.stage not in assistants:
                assistants.clear()  # one model at a time; its compiled programs serve all its benchmarks
                assistants[benchmark.stage] = load(workdir, benchmark.stage, trust)
            answers = Answers(workdir / "answers" / f"{name}.jsonl", {"benchmark": name, **marks[name]})
            assistant = RecordingAssistant(assistants[benchmark.stage], answers, name)
            found = _measure(benchmark, assistant)
            if assistant.refused:
                found["refused"] = [{"id": id, "reason": reason} for id, reason in assistant.refused.items()]
            results.add(name, found, marks[name], time.perf_counter() - begun)
        except DiskError:
            raise
        except Exception as error:  # whatever it is: the others' figures must not be lost with it
            logging.error("%s fails: %s", name, error)
            failures[name] = error
        else:
            results.write()
    return failures


def _measure(benchmark: Benchmark, assistant: RecordingAssistant) -> dict[str, Any]:
    try:
        found = dict(benchmark.run(assistant))
    except Exception:
        assistant.check()  # where few records are left, this may be why
        raise
    assistant.check()
    return found


def _raise(failures: Mapping[str, Exception]) -> None:
    """Raises what the benchmarks raised, as one error: a UserError if all are."""
    message = "\n".join(f"evaluation.{name}: {error}" for name, error in failures.items())
    for error in failures.values():
        if not isinstance(error, UserError):
            error.add_note(f"Raised by a benchmark; the results of the others are written. {message}")
            raise error
    kind = MissingFile if all(isinstance(error, MissingFile) for error in failures.values()) else UserError
    raise kind(message) from next(iter(failures.values()))


def _standing(config: Config, workdir: Path, name: str | None) -> dict[str, Any]:
    """What `load` gives of a stage, None for the last one trained: {stage, step, steps, checkpoint}.

    step: 0 where nothing is trained. checkpoint: a digest of its seal, '' without; other weights have another.
    """
    stage = config.stage(name) if name else last_trained(config, workdir) or config.stages[-1]
    step, digest = 0, ""
    with Checkpoints(workdir / stage.name / "checkpoints", keep=config.keep) as checkpoints:
        for saved in reversed(checkpoints.steps()):
            folder = checkpoints.directory / str(saved)
            if not find_fault(folder, ["params"]):
                seal = folder / MANIFEST
                digest = hashlib.sha256(seal.read_bytes()).hexdigest()[:16] if seal.exists() else ""
                step = saved
                break
    return {"stage": stage.name, "step": step, "steps": stage.steps, "checkpoint": digest}


def _parameters(config: Config, vocab: int) -> dict[str, Any]:
    """Counts: of the whole model in its last stage, and of what each stage trains."""
    model, trained, total = build_model(config, vocab), {}, 0
    for stage in config.stages:
        shapes = parameter_shapes(config, model, stage)
        part, _ = tree.partition(shapes, tree.select(stage.trainable, shapes, f"{stage.name}.trainable"))
        trained[stage.name], total = tree.count(part), tree.count(shapes)
    return {"total": total, "trained": trained}


def table(results: Mapping[str, Any]) -> str:
    """The figures as text, for the terminal."""
    lines, width = [], max(24, *(len(name) + 2 for name in results))
    for name, result in results.items():
        if "kinds" in result:
            lines.append(f"{name:{width}}{'model':>9}{'question only':>15}{'shuffled':>10}{'questions':>11}")
            rows = {**result["kinds"], "all": result}
            lines += [
                f"  {kind:{width - 2}}{row['accuracy']:>9.1%}{row['question_only']:>15.1%}{row['shuffled']:>10.1%}"
                f"{row['count']:>11,}"
                for kind, row in rows.items()
            ]
        elif isinstance(result, Mapping):
            figures = {k: v for k, v in result.items() if isinstance(v, int | float)}
            figures |= {"refused": len(result["refused"])} if result.get("refused") else {}
            lines.append(f"{name:{width}}" + ", ".join(f"{k} {_number(v)}" for k, v in figures.items()))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if value > 1 else f"{value:.1%}"
