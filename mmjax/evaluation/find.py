"""The benchmarks of a config, found and checked without a model: before a training as well as behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.build import bind, suggest
from mmjax.config import Config
from mmjax.errors import UserError
from mmjax.evaluation.runs import NO_BENCHMARKS


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark of a config's `evaluation` section.

    stage: whose model it is asked of, None for the last one trained. options: its section, without the stage.
    run: (assistant) -> its figures, perhaps with `examples`.
    """

    name: str
    stage: str | None
    options: Mapping[str, Any]
    run: Callable[[Any], Mapping[str, Any]]


def find_benchmarks(config: Config) -> dict[str, Benchmark]:
    """Every benchmark of a config by name: name -> dict(type=function, stage=, **options).

    Raises:
      UserError: a type that there is not, a wrong or missing option, a stage that the config does not have, each
        with the nearest right one; a name that eval.json or a file cannot have.
    """
    return {name: _find(name, spec, config) for name, spec in (config.evaluation or {}).items()}


def _find(name: str, spec: Mapping[str, Any], config: Config) -> Benchmark:
    where, stages = f"evaluation.{name}", [stage.name for stage in config.stages]
    if name in NO_BENCHMARKS:
        raise UserError(f"{where}: eval.json has something else under {name!r}; give the benchmark another name.")
    if not name or name.startswith(".") or "/" in name or "\0" in name or len(name.encode()) > 200:
        raise UserError(f"{where}: {name!r} cannot be the name of a file, where its answers lie; choose another.")
    options = {key: value for key, value in spec.items() if key != "stage"}
    stage = spec.get("stage")
    if stage is not None and stage not in stages:
        raise UserError(f"{where}.stage: no stage {stage!r}" + suggest(str(stage), stages))
    return Benchmark(name, stage, options, bind(options, where, positional=1, data_dir=config.data_dir))
