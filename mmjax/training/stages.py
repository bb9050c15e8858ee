"""Runs the stages of a config, one after the other, in one workdir; and goes on where a stopped run stood."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from mmjax import tree
from mmjax.config import Config, Stage, build_model, find_benchmarks, read_config
from mmjax.data.pipeline import Dataset, make_dataset, open_feeds
from mmjax.data.tokenizer import Tokenizer
from mmjax.model import MultimodalLM
from mmjax.sharding import make_mesh
from mmjax.training import start
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Loop
from mmjax.training.metrics import Metrics, Progress
from mmjax.training.resume import check_unchanged
from mmjax.training.setup import Setup, make_setup
from mmjax.workdir import (
    CONFIG,
    copy_origin,
    copy_tokenizer,
    from_portable,
    kept_tokenizer,
    locked,
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


def train(raw: Mapping[str, Any], workdir: str | Path, *, only: str | None = None, profile: bool = False) -> None:
    """Trains all stages of a config that are not done yet, or the stage named `only`.

    The same call on the same workdir resumes; on the same devices and mesh, bit-equal with a run that was never
    stopped. SIGTERM and Ctrl-C save, then raise Stopped. Whatever can be wrong with any stage is found out before
    the first step, and before anything is written.

    Args:
      raw: the resolved config as a dict.
      profile: write a profiler trace of a few steps to `workdir/STAGE/profile`.

    Raises:
      UserError: a mistake in the config, whichever stage it is in; names its key.
    """
    run = prepare(raw, Path(workdir))
    chosen = [run.config.stage(only)] if only else run.config.stages
    with locked(run.workdir, writes=jax.process_index() == 0), _stopping() as stop, jax.set_mesh(run.mesh):
        trained = [_finish_stage(run, run.setups[stage.name], stop, profile) for stage in chosen]
    if not any(trained):
        run.record(replace=True)  # keys that may change, such as `evaluation`


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


def _finish_stage(run: Run, setup: Setup, stop: threading.Event, profile: bool) -> bool:
    """Trains what is left of a stage; whether anything was.

    A stage is done when its last step is whole. What the next one has begun from is done, whatever came of it.
    """
    stage = setup.stage
    index = run.config.stages.index(stage)
    if after := [later.name for later in run.config.stages[index + 1 :] if later.name in run.begun]:
        logging.info("Stage %s: done; %r has begun from it.", stage.name, after[0])
        return False
    with run.checkpoints(stage) as checkpoints:
        if checkpoints.latest() == stage.steps and checkpoints.verify() == stage.steps:
            logging.info("Stage %s: done, after %d steps.", stage.name, stage.steps)
            return False
        _train_stage(run, setup, checkpoints, stop, profile)
    return True


def _train_stage(run: Run, setup: Setup, checkpoints: Checkpoints, stop: threading.Event, profile: bool) -> None:
    stage, begun = setup.stage, time.perf_counter()
    data = run.data(stage, "train")
    valid = run.data(stage, "valid") if stage.valid else None
    _announce(setup, data)
    if checkpoints.begun:
        state, position, seconds = start.resume(setup, checkpoints, data)
    else:
        state, position, seconds = start.begin(setup, _starting_parameters(run, setup), checkpoints), 0, 0.0
    directory = run.workdir / stage.name
    with (
        Metrics(directory, position, run.config.wandb) as metrics,
        Progress(stage.name, stage.steps, position) as progress,
    ):
        loop = Loop(
            setup=setup,
            config=json.dumps(run.raw),
            record=run.record,
            max_skipped=run.config.max_skipped,
            data=data,
            valid=valid,
            checkpoints=checkpoints,
            metrics=metrics,
            progress=progress,
            clock=begun - seconds,
        )
        loop.run(state, position, stop, directory / "profile" if profile else None)


def _starting_parameters(run: Run, setup: Setup) -> dict[str, Any]:
    index = run.config.stages.index(setup.stage)
    if index == 0:
        return start.first_parameters(run.config, run.model, setup)
    before = run.config.stages[index - 1]
    with run.checkpoints(before) as checkpoints:
        return start.next_parameters(run.config, run.model, setup, before, checkpoints)


def _announce(setup: Setup, data: Dataset) -> None:
    total, trained = tree.count(setup.shapes), tree.count(setup.trainable)
    logging.info(
        "Stage %s: %d steps of %d rows; %s of %s parameters trained (%.2f %%); rows %.0f %% full.",
        *(setup.stage.name, setup.stage.steps, setup.stage.batch, f"{trained:,}", f"{total:,}"),
        *(100 * trained / total, 100 * data.fill),
    )


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, instead of ending the process in the midst of a step; the second
    Ctrl-C ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupted(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    handlers = {signal.SIGTERM: lambda *_: stop.set(), signal.SIGINT: interrupted}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
