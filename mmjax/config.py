"""The sections of a config, checked: an unknown or missing key stops at once and names the right one.

A config file (`configs/*.py`) is data: a `ConfigDict`. Here it becomes frozen dataclasses with no default for
any key, so that what a run does can be read off its config alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from mmjax.build import bind, resolve, section
from mmjax.data.spec import DataSpec
from mmjax.errors import UserError
from mmjax.model import MultimodalLM, make_model
from mmjax.typed import Count, Decay, Natural, NotNegative, Positive, Range, check_types, fits, suggest

# Where such parts of mmjax stand; those of a model say so in model.py.
OBJECTIVES, BENCHMARKS, TOKENIZERS = "objectives", "evaluation.benchmarks", "data.tokenizer"
# What a step reports beside its losses, or the loop beside the step.
METRICS = (
    *("loss", "grad_norm", "skipped", "tokens", "slots", "step"),
    *("time", "seconds", "learning_rate", "compilations", "loader_wait"),
)
MOST_TOKENS = 2**31 - 1  # of a step: they are counted in int32
NO_BENCHMARKS = ("parameters", "seconds")  # what else stands in eval.json beside benchmarks
STAGE = re.compile(r"\w[\w-]*", re.ASCII)  # names of stages: each is a folder in the workdir


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its rank, and alpha, which divided by the rank scales it."""

    rank: Count
    alpha: float


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What training/optimizer.py makes the optimizer of a stage from.

    lr: the peak. schedule, warmup, final: from 0 up to the peak and down to `final` of it; warmup in updates or,
    below 1, as a fraction of the stage's. clip: largest global norm of the gradients, 0 for none. lr_factors and
    decay: rules that cover every trainable path.
    """

    type: Literal["adamw"]
    lr: NotNegative
    schedule: Literal["cosine", "linear", "constant"]
    warmup: NotNegative
    final: NotNegative
    b1: Decay
    b2: Decay
    eps: Positive
    weight_decay: NotNegative
    clip: NotNegative
    lr_factors: list[tuple[str, NotNegative]]
    decay: list[tuple[str, bool]]

    def __post_init__(self):
        if self.schedule == "constant" and self.final != 1:
            raise UserError(f"final: {self.final!r}; a constant schedule ends at its peak, so it must be 1.")

    def warmup_updates(self, total: int) -> int:
        """Updates of the warm-up in a stage of `total`. A fraction is rounded up, as Hugging Face's `warmup_ratio`
        is: published recipes are given in it. Raises UserError for what is neither."""
        updates = math.ceil(self.warmup * total) if self.warmup < 1 else self.warmup
        if updates != int(updates) or updates >= total:
            raise UserError(
                f"optimizer.warmup: {self.warmup!r} is neither a fraction below 1 nor a whole number of updates "
                f"below the stage's {total}."
            )
        return int(updates)


@dataclasses.dataclass(frozen=True)
class Validation:
    """Losses on held-out data, in one pass over it. every: steps."""

    every: Count
    data: DataSpec


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training, started from the weights of the stage before.

    batch: rows a step, over all devices. steps: how many. losses: name -> dict(type=an objective, weight=).
    trainable: path regexes; what none finds is frozen. lora: `(regex, adapter)` rules of the adapters that this
    stage adds. accumulate: parts that a batch is taken in. ema: decay of the parameters' running mean, 0 for none.
    log_every, save_every: steps.
    """

    name: str
    data: DataSpec
    batch: Count
    steps: Count
    losses: Mapping[str, Mapping[str, Any]]
    trainable: list[str]
    lora: list[tuple[str, Adapter]]
    optimizer: Optimizer
    accumulate: Count
    ema: Decay
    valid: Validation | None
    log_every: Count
    save_every: Count

    def __post_init__(self):
        if self.batch * self.data.length > MOST_TOKENS:
            raise UserError(
                f"batch: {self.batch:,} rows of {self.data.length:,} tokens; a step takes {MOST_TOKENS:,} at most."
            )
        self.optimizer.warmup_updates(self.steps)
        if not self.trainable:
            raise UserError("trainable: there are no rules, so that nothing would be trained; ['.'] trains all.")
        if not self.losses:
            raise UserError("losses: there are none; give recipes.loss('language.next_token').")

    @property
    def data_specs(self) -> list[tuple[DataSpec, str]]:
        """What it reads, each with its path in the config: to train on, and perhaps to be validated by."""
        valid = [(self.valid.data, f"{self.name}.valid.data")] if self.valid else []
        return [(self.data, f"{self.name}.data"), *valid]


@dataclasses.dataclass(frozen=True)
class Precision:
    """Names of dtypes: of trained parameters, of activations, of frozen parameters.

    Trained parameters are float32: in bfloat16 Adam's second moment never decays (0.999 is 1), a step of 1e-3 of a
    weight is lost in rounding, and initial weights have 128 values. Matrices are multiplied in `compute_dtype`.
    """

    param_dtype: str
    compute_dtype: Literal["float32", "bfloat16", "float16"]
    frozen_dtype: Literal["float32", "bfloat16", "float16"]

    def __post_init__(self):
        if self.param_dtype != "float32":
            raise UserError(
                f"param_dtype: {self.param_dtype!r}: what is trained is float32, as are its moments. Matrices are "
                "multiplied in precision.compute_dtype, and frozen parameters kept in precision.frozen_dtype."
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. model: see model.make_model. tokenizer: dict(type=, path=, ...), with `train` where `mmjax
    prepare` makes it. stages: in order. load: `(part of the model, source)` rules of what the first of them
    starts from (hub/load.py), [] for from scratch. evaluation: None, or what `mmjax evaluate` runs. mesh: axis
    sizes (sharding.py). max_skipped: steps with a non-finite loss that a stage survives. keep: checkpoints kept a
    stage. wandb: None, or arguments of wandb.init. data_dir: where prepared corpora and tokenizers lie."""

    seed: Annotated[int, Range(0, 2**32, open=True)]
    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    stages: tuple[Stage, ...]
    evaluation: Mapping[str, Mapping[str, Any]] | None
    mesh: Mapping[str, int]
    precision: Precision
    remat: bool
    scan: bool
    data_dir: str
    load: list[tuple[str, str]]
    max_skipped: Natural
    keep: Count
    wandb: Mapping[str, Any] | None

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
          UserError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"--stage: no stage {name!r}" + suggest(name, [s.name for s in self.stages]))


def read_config(raw: Mapping[str, Any]) -> Config:
    """A config's dict, checked. `stages` is a list of names, each the key of that stage's section.

    Raises:
      UserError: an unknown or missing key, with the nearest right one.
    """
    raw = dict(json.loads(json.dumps(dict(raw))))  # as it will be read back from a workdir
    check_types(raw, {"stages": list[str]}, "config")
    names = raw.get("stages", [])
    if not names:
        raise UserError("stages: there are none; name at least one, and give it a section.")
    stages = []
    for name in names:
        if not STAGE.fullmatch(name):
            raise UserError(f"stages: {name!r} cannot be a folder's name; letters, digits, '_' and '-' can.")
        if names.count(name) > 1:
            raise UserError(
                f"stages: {name!r} stands there twice; a stage that is trained again has another name."
            )
        if not isinstance(raw.get(name), Mapping):
            raise UserError(f"config: the stage {name!r} has no section c.{name}.")
        stages.append(section(Stage, {"name": name, **raw[name]}, name))
    raw = {key: value for key, value in raw.items() if key not in names}
    if "precision" in raw:
        raw["precision"] = section(Precision, raw["precision"], "precision")
    return section(Config, raw | {"stages": tuple(stages)}, "config")


def find_losses(spec: Mapping[str, Mapping[str, Any]], where: str = "losses") -> dict[str, tuple[Callable, float]]:
    """{'next_token': dict(type='objectives.language.next_token', weight=1.0, **options)} -> functions and weights.

    Raises:
      UserError: no such objective; a wrong or missing option, or no weight; a name that a metric has.
    """
    found = {}
    for name, loss in spec.items():
        path = f"{where}.{name}"
        if name in METRICS:
            raise UserError(f"{path}: the metrics have something else under {name!r}; give the loss another name.")
        if not fits(loss.get("weight"), float):
            raise UserError(f"{path}.weight: {loss.get('weight')!r} is no number.")
        options = {key: value for key, value in loss.items() if key != "weight"}
        found[name] = (bind(options, path, room=OBJECTIVES, positional=2), loss["weight"])  # of (forward, batch)
    return found


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
    """Every benchmark of a config by name, found and checked without a model.

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
    return Benchmark(
        name, stage, options, bind(options, where, room=BENCHMARKS, positional=1, data_dir=config.data_dir)
    )


def build_model(config: Config, vocab: int) -> MultimodalLM:
    """The model of a config, for a tokenizer of `vocab` tokens. Where the backbone's own `vocab` is smaller, the
    tokens beyond it can only stand where media do; Chat refuses them elsewhere."""
    return make_model(
        config.model,
        vocab=vocab,
        dtype=jnp.dtype(config.precision.compute_dtype),
        param_dtype=jnp.dtype(config.precision.param_dtype),
        remat=config.remat,
        scan=config.scan,
    )


def check_parts(config: Config) -> None:
    """Raises UserError if a config names a part that is none: of its model, which is built for that; or its
    tokenizer, a loss or a benchmark, which are only looked up."""
    build_model(config, 1)
    named = [("tokenizer", config.tokenizer, TOKENIZERS)]
    named += [(f"evaluation.{name}", spec, BENCHMARKS) for name, spec in (config.evaluation or {}).items()]
    for stage in config.stages:
        named += [(f"{stage.name}.losses.{name}", spec, OBJECTIVES) for name, spec in stage.losses.items()]
    for where, spec, room in named:
        found = resolve(spec.get("type", ""), f"{where}.type", room)
        if inspect.isclass(found) != (room == TOKENIZERS):  # losses and benchmarks are functions
            raise UserError(f"{where}.type: {spec['type']!r} is no such part.")
