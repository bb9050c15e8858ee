"""The sections of a config, checked: an unknown or missing key stops at once and names the right one.

A config file (`configs/*.py`) is data: a `ConfigDict`. Here it becomes frozen dataclasses with no default for
any key, so that what a run does can be read off its config alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.build import suggest
from mmjax.errors import UserError
from mmjax.model import MultimodalLM, make_model
from mmjax.typed import check_types, hints_of

STAGE = re.compile(r"\w[\w-]*", re.ASCII)  # names of stages: each is a folder in the workdir
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training, started from the weights of the stage before.

    data: a data spec (data/spec.py). batch: rows a step, over all devices. steps: how many.
    losses: name -> dict(type=an objective, weight=). trainable: path regexes; what none finds is frozen.
    lora: `(regex, dict(rank=, alpha=))` rules of the adapters that this stage adds. optimizer: see
    training/optimizer.py. accumulate: parts that a batch is taken in. ema: decay of the parameters' running
    mean, 0 for none. valid: None, or dict(every=steps, data=a data spec) for the losses on held-out data.
    log_every, save_every: steps.
    """

    name: str
    data: Mapping[str, Any]
    batch: int
    steps: int
    losses: Mapping[str, Mapping[str, Any]]
    trainable: list[str]
    lora: list[tuple[str, Mapping[str, Any]]]
    optimizer: Mapping[str, Any]
    accumulate: int
    ema: float
    valid: Mapping[str, Any] | None
    log_every: int
    save_every: int

    def __post_init__(self):
        for key in ("batch", "steps", "accumulate", "log_every", "save_every"):
            if getattr(self, key) < 1:
                raise UserError(f"{self.name}.{key}: {getattr(self, key)} is below 1.")
        if not 0 <= self.ema < 1:
            raise UserError(f"{self.name}.ema: {self.ema} is no decay: 0 for none, or below 1.")
        for pattern, adapter in self.lora:
            check_keys(("rank", "alpha"), adapter, f"{self.name}.lora {pattern!r}")
            check_types(adapter, {"rank": int, "alpha": float}, f"{self.name}.lora {pattern!r}")
            if adapter["rank"] < 1:
                raise UserError(f"{self.name}.lora {pattern!r}: rank {adapter['rank']} is below 1.")
        if self.valid is not None:
            check_keys(("every", "data"), self.valid, f"{self.name}.valid")
            check_types(self.valid, {"every": int, "data": Mapping[str, Any]}, f"{self.name}.valid")
            if self.valid["every"] < 1:
                raise UserError(f"{self.name}.valid.every: {self.valid['every']} is below 1.")


@dataclasses.dataclass(frozen=True)
class Precision:
    """Names of dtypes: of trained parameters, of activations, of frozen parameters."""

    param_dtype: str
    compute_dtype: str
    frozen_dtype: str

    def __post_init__(self):
        for key, name in vars(self).items():
            if name not in DTYPES:
                raise UserError(f"precision.{key}: no {name!r}" + suggest(name, DTYPES))


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. model: see model.make_model. tokenizer: dict(type=, path=, ...), with `train` where `mmjax
    prepare` makes it. stages: in order. load: `(part of the model, source)` rules of what the first of them
    starts from (hub/load.py), [] for from scratch. evaluation: None, or what `mmjax evaluate` runs. mesh: axis
    sizes. max_skipped: steps with a non-finite loss that a stage survives. keep: checkpoints kept a stage.
    wandb: None, or arguments of wandb.init. data_dir: where prepared corpora and tokenizers lie."""

    seed: int
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
    max_skipped: int
    keep: int
    wandb: Mapping[str, Any] | None

    def __post_init__(self):
        for key, least in dict(keep=1, max_skipped=0).items():
            if getattr(self, key) < least:
                raise UserError(f"{key}: {getattr(self, key)} is below {least}.")

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
    check_types(raw, {"stages": list[str], "precision": Mapping[str, Any]}, "config")
    stages = []
    for name in raw.get("stages", []):
        if not STAGE.fullmatch(name):
            raise UserError(f"stages: {name!r} cannot be a folder's name; letters, digits, '_' and '-' can.")
        if not isinstance(raw.get(name), Mapping):
            raise UserError(f"config: the stage {name!r} has no section c.{name}.")
        stages.append(_section(Stage, {"name": name, **raw.pop(name)}, name))
    raw["precision"] = _section(Precision, raw.get("precision", {}), "precision")
    return _section(Config, raw | {"stages": tuple(stages)}, "config")


def check_keys(known: Collection[str], values: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a key of a section that is not known, with the nearest one, or that is missing."""
    for key in values:
        if key not in known:
            raise UserError(f"{where}: no key {key!r}" + suggest(key, known))
    if missing := [key for key in known if key not in values]:
        raise UserError(f"{where}: requires {', '.join(missing)}.")


def _section(cls: type, values: Mapping[str, Any], where: str) -> Any:
    check_keys([field.name for field in dataclasses.fields(cls)], values, where)
    check_types(values, hints_of(cls), where)
    return cls(**values)


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
