"""A run before its first step: its config read, its workdir looked at, the setups of all its stages made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.config import Config, Stage, build_model, find_benchmarks, read_config
from mmjax.data.pipeline import Dataset, make_dataset, open_feeds
from mmjax.data.tokenizer import Tokenizer
from mmjax.model import MultimodalLM
from mmjax.sharding import make_mesh
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.resume import check_unchanged
from mmjax.training.setup import Setup, make_setup
from mmjax.workdir import (
    CONFIG,
    copy_origin,
    copy_tokenizer,
    from_portable,
    kept_tokenizer,
    open_tokenizer,
    save_config,
    to_portable,
    tokenizer_path,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """All that is known of a run before its first step. raw: the config as the workdir keeps it. setups: of each
    stage. begun: names of the stages that the workdir has begun already."""

    config: Config
    raw: Mapping[str, Any]
    workdir: Path
    model: MultimodalLM
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    setups: Mapping[str, Setup]
    begun: Sequence[str]

    def checkpoints(self, stage: Stage) -> Checkpoints:
        return Checkpoints(self.workdir / stage.name / "checkpoints", keep=self.config.keep)

    def record(self, replace: bool) -> None:
        """Writes down what the workdir is trained with: config, tokenizer, hub files. replace: False leaves an
        earlier config, whose weights may still be all that there is."""
        if jax.process_index() == 0 and (replace or not (self.workdir / CONFIG).exists()):
            copy_tokenizer(self.config.tokenizer, self.workdir)
            copy_origin(self.config, self.workdir)
            save_config(self.raw, self.workdir)

    def data(self, stage: Stage, split: str) -> Dataset:
        """The data that a stage trains on, or is validated by in one pass."""
        valid = split == "valid"
        return make_dataset(
            stage.valid.data if valid else stage.data,
            self.tokenizer,
            span=self.model.text_span,
            splice=self.model.splices,
            rows=None if valid else stage.steps * stage.batch,
            seed=self.config.seed,
            data_dir=self.config.data_dir,
            quarantine=self.workdir / "quarantine.jsonl",
            stage=stage.name,
            split=split,
            vocab=self.model.backbone.vocab,
        )


def prepare(raw: Mapping[str, Any], workdir: Path) -> Run:
    """Reads a config, looks at the workdir, and makes the setups of all stages. Nothing is written.

    Raises:
      UserError: whatever is wrong with any of them.
    """
    raw = to_portable(raw, workdir)
    config = read_config(from_portable(raw, workdir))
    find_benchmarks(config)
    begun = check_unchanged(raw, workdir)
    left = [stage for stage in config.stages if not _looks_done(stage, workdir, begun)]  # the others read no data
    tokenizer = _open_tokenizer(config.tokenizer, workdir, bool(begun))
    model, mesh = build_model(config, tokenizer.vocab_size), make_mesh(config.mesh)
    setups = {}
    with jax.set_mesh(mesh):
        for stage in config.stages:
            setups[stage.name] = make_setup(config, stage, model, mesh)
            for data, where in stage.data_specs if stage in left else ():
                vocab = model.backbone.vocab
                open_feeds(data, tokenizer, model.text_span, model.splices, config.data_dir, where, vocab)
    return Run(config, raw, workdir, model, tokenizer, mesh, setups, begun)


def _looks_done(stage: Stage, workdir: Path, begun: Sequence[str]) -> bool:
    """Whether a stage has its last step, or one after it has begun; nothing of it is read."""
    with Checkpoints(workdir / stage.name / "checkpoints", keep=1) as checkpoints:
        return checkpoints.latest() == stage.steps or stage.name in begun[:-1]


def _open_tokenizer(spec: Mapping[str, Any], workdir: Path, begun: bool) -> Tokenizer:
    """That of a workdir that has begun; else the one that the config names, so that it may be another yet."""
    kept, given = kept_tokenizer(spec, workdir), tokenizer_path(spec)
    return open_tokenizer(spec, kept if kept.exists() and (begun or not given.exists()) else given)
