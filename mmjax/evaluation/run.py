"""`mmjax evaluate`: runs a config's benchmarks on what its workdir has trained, and writes the results down."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmjax import tree
from mmjax.build import bind
from mmjax.config import Config, build_model
from mmjax.errors import UserError
from mmjax.evaluation.progress import training_seconds
from mmjax.evaluation.report import write_report
from mmjax.inference.chat import Assistant
from mmjax.inference.load import load
from mmjax.training.stages import parameter_shapes
from mmjax.workdir import keep_tokenizer, load_config, read_raw


def evaluate(workdir: str | Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Runs every benchmark of the config's `evaluation` section: name -> dict(type=function, stage=, **options).

    A benchmark is a function of (assistant, data_dir=, **options) that returns a dict of figures, perhaps with
    `examples` for the report. Writes `eval.json` (the figures), `examples.json` and `report.html`.

    Args:
      trust: packages, besides mmjax, that benchmarks and parts of the model may come from.

    Raises:
      UserError: the config has no benchmarks, or one with a wrong or missing option.
    """
    workdir, begun = Path(workdir), time.perf_counter()
    config = load_config(workdir, trust)
    if not config.evaluation:
        raise UserError(f"{workdir}: its config has no `evaluation` section, nothing to run.")
    benchmarks = {name: _benchmark(name, spec, config) for name, spec in config.evaluation.items()}
    results: dict[str, Any] = {}
    assistants: dict[str | None, Assistant] = {}
    bar = tqdm(config.evaluation.items(), desc="evaluate", unit=" benchmarks")
    for name, spec in bar:
        bar.set_postfix_str(name)
        stage = spec.get("stage")
        if stage not in assistants:
            assistants.clear()  # one model at a time; its compiled programs serve all its benchmarks
            assistants[stage] = load(workdir, stage, trust)
        results[name] = benchmarks[name](assistants[stage])
    results["parameters"] = _parameters(config, keep_tokenizer(config.tokenizer, workdir).vocab_size)
    results["seconds"] = {"train": training_seconds(workdir), "evaluate": time.perf_counter() - begun}
    figures = {name: {k: v for k, v in r.items() if k != "examples"} for name, r in results.items()}
    (workdir / "examples.json").write_text(json.dumps(_portable(results), default=str) + "\n")
    (workdir / "eval.json").write_text(json.dumps(figures, indent=1) + "\n")
    results["report"] = str(write_report(workdir, workdir.name, read_raw(workdir), results))
    return results


def _benchmark(name: str, spec: Mapping[str, Any], config: Config) -> Callable[[Assistant], dict[str, Any]]:
    options = {key: value for key, value in spec.items() if key != "stage"}
    return bind(options, f"evaluation.{name}", positional=1, data_dir=config.data_dir)


def _portable(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The examples of each benchmark that has any, pictures in base64."""

    def portable(value: Any) -> Any:
        data = Path(value).read_bytes() if isinstance(value, os.PathLike) else value
        return base64.b64encode(data).decode() if isinstance(data, bytes) else data

    return {
        name: [{key: portable(value) for key, value in example.items()} for example in result["examples"]]
        for name, result in results.items()
        if result.get("examples")
    }


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
            lines.append(f"{name:{width}}" + ", ".join(f"{k} {_number(v)}" for k, v in figures.items()))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if value > 1 else f"{value:.1%}"
