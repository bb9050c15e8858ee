"""A run before its first step: its config read, its workdir looked at, the setups of all its stages made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.config import Config, Stage, build_model, find_benchmarks
from mmjax.data.pipeline import Dataset, make_dataset, open_feeds
from mmjax.data.tokenizer import Tokenizer
from mmjax.hub.load import WEIGHTS
from mmjax.model import MultimodalLM
from mmjax.sharding import make_mesh
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.metrics import require_wandb
from mmjax.training.setup import Setup, make_setup
from mmjax.training.start import check_load
from mmjax.workdir.changes import check_changes, check_model
from mmjax.workdir.kept import CONFIG, copy_origin, copy_tokenizer, kept_tokenizer, open_tokenizer, tokenizer_path
from mmjax.workdir.saved import Saved


@dataclasses.dataclass(frozen=True)
class Run:
    """All that is known of a run before its first step. setups: of each stage. begun: names of the stages that the
    workdir has begun already."""

    saved: Saved
    model: MultimodalLM
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    setups: Mapping[str, Setup]
    begun: Sequence[str]

    @property
    def config(self) -> Config:
        return self.saved.config

    @property
    def workdir(self) -> Path:
        return self.saved.workdir

    def checkpoints(self, stage: Stage) -> Checkpoints:
        return Checkpoints(self.workdir / stage.name / "checkpoints", keep=self.config.keep)

    def record(self, replace: bool) -> None:
        """Writes down what the workdir is trained with: config, tokenizer, hub files. replace: False leaves an
        earlier config, whose weights may still be all that there is."""
        if jax.process_index() == 0 and (replace or not (self.workdir / CONFIG).exists()):
            copy_tokenizer(self.config.tokenizer, self.workdir)
            copy_origin(self.config, self.workdir)
            self.saved.write()

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
    saved = Saved.of(raw, workdir)
    config = saved.config
    find_benchmarks(config)
    begun = _check_unchanged(saved)
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
        if not begun:
            check_load(config, setups[config.stages[0].name])
        for stage in left:  # last, for it takes longest
            setups[stage.name].trace()
    if config.wandb is not None:
        require_wandb()
    return Run(saved, model, tokenizer, mesh, setups, begun)


def begun_stages(stages: Sequence[str], workdir: Path) -> list[str]:
    """Those of the stages that have a checkpoint, or had one that was found damaged."""
    begun = []
    for name in stages:
        with Checkpoints(workdir / name / "checkpoints", keep=1) as checkpoints:
            begun += [name] if checkpoints.begun else []
    return begun


def _check_unchanged(now: Saved) -> list[str]:
    """The stages that a workdir has begun. Raises UserError if a run of this config cannot go on with them."""
    workdir = now.workdir
    kept = Saved.of(Saved.read(workdir).today, workdir) if (workdir / CONFIG).exists() else now
    begun = begun_stages([stage.name for stage in kept.config.stages], workdir)
    if begun:
        with Checkpoints(workdir / begun[-1] / "checkpoints", keep=1) as checkpoints:
            before, step = json.loads(checkpoints.config()), checkpoints.latest()
        check_changes(Saved.of(before, workdir), now, begun[-1], step)
    elif (workdir / WEIGHTS).exists():  # converted: its config says what the weights are
        check_model(kept, now)
    return begun


def _looks_done(stage: Stage, workdir: Path, begun: Sequence[str]) -> bool:
    """Whether a stage has its last step, or one after it has begun; nothing of it is read."""
    with Checkpoints(workdir / stage.name / "checkpoints", keep=1) as checkpoints:
        return checkpoints.latest() == stage.steps or stage.name in begun[:-1]


def _open_tokenizer(spec: Mapping[str, Any], workdir: Path, begun: bool) -> Tokenizer:
    """That of a workdir that has begun; else the one that the config names, so that it may be another yet."""
    kept, given = kept_tokenizer(spec, workdir), tokenizer_path(spec)
    return open_tokenizer(spec, kept if kept.exists() and (begun or not given.exists()) else given)
