"""Runs the stages of a config, one after the other, in one workdir; and goes on where a stopped run stood."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from mmjax.training import start
from mmjax.training.announce import announce
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Loop
from mmjax.training.metrics import Metrics, Progress
from mmjax.training.run import Run, prepare
from mmjax.training.setup import Setup
from mmjax.workdir.lock import locked


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
    if jax.process_index() == 0:
        announce(run, setup, data)
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
            config=json.dumps(run.saved.raw),
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
