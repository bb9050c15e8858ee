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
import jax.numpy as jnp
from absl import logging

from mmjax import tree
from mmjax.config import Config, Stage, build_model, read_config
from mmjax.data.pipeline import Dataset, make_dataset
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import UserError
from mmjax.hub.load import load_parts
from mmjax.model import MultimodalLM
from mmjax.nn.linear import add_lora
from mmjax.sharding import make_mesh, shard_tree
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Loop
from mmjax.training.metrics import Metrics, Progress
from mmjax.training.optimizer import make_optimizer
from mmjax.training.resume import check_unchanged
from mmjax.training.state import TrainState, make_state
from mmjax.training.step import make_evaluation, make_step
from mmjax.training.trained import trained_parameters
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
    """What all stages of a run share. raw: the config as the workdir keeps it."""

    config: Config
    raw: Mapping[str, Any]
    workdir: Path
    model: MultimodalLM
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

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
        spec, rows = (stage.valid.data, None) if valid else (stage.data, stage.steps * stage.batch)
        spans = self.model.tokens_per_medium()
        splice = self.model.fusion == "splice"
        limit = self.model.backbone.max_positions
        if limit and spec.length > limit:
            raise UserError(f"data.length: {spec.length} tokens; model.backbone.max_positions is {limit}.")
        return make_dataset(
            spec,
            self.tokenizer,
            span=spans.get("image", 1) if splice else 1,
            splice=splice,
            rows=rows,
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
    stopped. SIGTERM saves, then raises Stopped.

    Args:
      raw: the resolved config as a dict.
      profile: write a profiler trace of a few steps to `workdir/STAGE/profile`.
    """
    workdir = Path(workdir)
    raw = to_portable(raw, workdir)
    config = read_config(from_portable(raw, workdir))
    chosen = [config.stage(only)] if only else config.stages
    with locked(workdir, writes=jax.process_index() == 0), _sigterm() as stop:
        begun = check_unchanged(raw, workdir)
        tokenizer = _open_tokenizer(config.tokenizer, workdir, bool(begun))
        mesh = make_mesh(config.mesh)
        run = Run(config, raw, workdir, build_model(config, tokenizer.vocab_size), tokenizer, mesh)
        with jax.set_mesh(mesh):
            trained = [_finish_stage(run, stage, begun, stop, profile) for stage in chosen]
        if not any(trained):
            run.record(replace=True)  # keys that may change, such as `evaluation`


def _open_tokenizer(spec: Mapping[str, Any], workdir: Path, begun: bool) -> Tokenizer:
    """That of a workdir that has begun; else the one that the config names, so that it may be another yet."""
    kept, given = kept_tokenizer(spec, workdir), tokenizer_path(spec)
    return open_tokenizer(spec, kept if kept.exists() and (begun or not given.exists()) else given)


def _finish_stage(run: Run, stage: Stage, begun: Sequence[str], stop: threading.Event, profile: bool) -> bool:
    """Trains what is left of a stage; whether anything was.

    A stage is done when its last step is whole. What the next one has begun from is done, whatever came of it.
    """
    index = run.config.stages.index(stage)
    if after := [later.name for later in run.config.stages[index + 1 :] if later.name in begun]:
        logging.info("Stage %s: done; %r has begun from it.", stage.name, after[0])
        return False
    with run.checkpoints(stage) as checkpoints:
        if checkpoints.latest() == stage.steps and checkpoints.verify() == stage.steps:
            logging.info("Stage %s: done, after %d steps.", stage.name, stage.steps)
            return False
        _train_stage(run, stage, checkpoints, stop, profile)
    return True


def _train_stage(run: Run, stage: Stage, checkpoints: Checkpoints, stop: threading.Event, profile: bool) -> None:
    config, begun = run.config, time.perf_counter()
    _check_batch(stage, run.mesh)
    data = run.data(stage, "train")
    valid = run.data(stage, "valid") if stage.valid else None
    shapes = parameter_shapes(run.config, run.model, stage)
    trainable, _ = tree.partition(shapes, tree.select(stage.trainable, shapes, f"{stage.name}.trainable"))
    optimizer, schedule = make_optimizer(stage.optimizer, stage.steps, trainable, f"{stage.name}.optimizer")
    _announce(stage, shapes, trainable, data)

    def begin(params: Any) -> TrainState:
        dtype, key = jnp.dtype(config.precision.frozen_dtype), jax.random.key(config.seed)
        return make_state(params, stage.trainable, optimizer, key, frozen_dtype=dtype, ema=stage.ema > 0)

    abstract = jax.eval_shape(begin, shapes)
    shardings = shard_tree(abstract, run.mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    if not checkpoints.begun:
        params = _starting_parameters(run, stage, shapes)
        checkpoints.begin(tree.partition(params, tree.select(stage.trainable, params, "trainable"))[1])
        state, position, seconds = jax.jit(begin, out_shardings=shardings, donate_argnums=0)(params), 0, 0.0
    else:
        state, position, seconds = _resume(checkpoints, abstract, data)
    step = make_step(run.model, stage.losses, optimizer, accumulate=stage.accumulate, ema=stage.ema)
    directory = run.workdir / stage.name
    with (
        Metrics(directory, position, config.wandb) as metrics,
        Progress(stage.name, stage.steps, position) as progress,
    ):
        loop = Loop(
            stage=stage,
            config=json.dumps(run.raw),
            record=run.record,
            max_skipped=config.max_skipped,
            mesh=run.mesh,
            data=data,
            valid=valid,
            step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
            measure=jax.jit(make_evaluation(run.model, stage.losses)),
            schedule=schedule,
            checkpoints=checkpoints,
            metrics=metrics,
            progress=progress,
            clock=begun - seconds,
        )
        loop.run(state, position, stop, directory / "profile" if profile else None)


def _resume(checkpoints: Checkpoints, abstract: TrainState, data: Dataset) -> tuple[TrainState, int, float]:
    restored = checkpoints.restore(
        {
            "params": {"trainable": abstract.params, "ema": abstract.ema},
            "optimizer": abstract.optimizer,
            "rest": {"step": abstract.step, "skipped": abstract.skipped, "rng": abstract.rng},
        }
    )
    if restored.data["fingerprint"] != data.fingerprint:
        raise UserError(
            "The data is not what this stage was trained on so far (other records, lengths, weights or seed): "
            "restore it, or begin in another --workdir."
        )
    params, rest = restored.state["params"], restored.state["rest"]
    state = TrainState(
        params=params["trainable"],
        frozen=checkpoints.restore_frozen(abstract.frozen),
        ema=params["ema"],
        optimizer=restored.state["optimizer"],
        **rest,
    )
    return state, restored.step, restored.data["seconds"]


def parameter_shapes(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    """Shapes of all parameters in a stage, the adapters of this and earlier stages included."""
    return jax.eval_shape(lambda: _initialise(config, model, stage))


def _initialise(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    params = model.init(jax.random.key(config.seed))
    for index, each in enumerate(config.stages[: config.stages.index(stage) + 1]):
        params = add_lora(params, each.lora, jax.random.fold_in(jax.random.key(config.seed), index))
    return params


def _starting_parameters(run: Run, stage: Stage, shapes: tree.Tree) -> dict[str, Any]:
    """For the first stage what `load` names, the rest from scratch; else what the stage before ended with."""
    shardings = shard_tree(shapes, run.mesh)
    index = run.config.stages.index(stage)
    if index == 0:
        plain = {path: "/lora_" not in path for path in tree.flatten(shapes)}  # adapters begin here
        places = tree.partition(shardings, plain)[0]
        found = load_parts(run.config.load, tree.partition(shapes, plain)[0], places)
    else:
        found = _carried_over(run, run.config.stages[index - 1], stage, shapes)
    there = tree.flatten(found)
    # Only what is missing is computed: the compiler drops the rest.
    missing = {path: path not in there for path in tree.flatten(shapes)}
    rest = jax.jit(
        lambda: tree.partition(_initialise(run.config, run.model, stage), missing)[0],
        out_shardings=tree.partition(shardings, missing)[0],
    )
    return tree.merge(rest(), found)


def _carried_over(run: Run, before: Stage, stage: Stage, shapes: tree.Tree) -> dict[str, Any]:
    """What `before` ended with, as `stage` wants it: all but the adapters that it adds."""
    with run.checkpoints(before) as checkpoints:
        if checkpoints.latest() != before.steps or checkpoints.verify() != before.steps:
            raise UserError(
                f"Stage {stage.name!r} starts from {before.name!r}, not done in {run.workdir}; train that first."
            )
        params = trained_parameters(checkpoints, run.mesh)
    if stage.lora:
        there = tree.flatten(params)
        old = {path: path in there or "/lora_" not in path for path in tree.flatten(shapes)}
        shapes = tree.partition(shapes, old)[0]
    if trouble := tree.explain_mismatch(shapes, params):
        raise UserError(f"Stage {stage.name!r} cannot start from {before.name!r}:\n{trouble}")
    return jax.tree.map(lambda p, shape: p.astype(shape.dtype), params, shapes)


def _check_batch(stage: Stage, mesh: jax.sharding.Mesh) -> None:
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if stage.batch % (devices * stage.accumulate):
        raise UserError(
            f"{stage.name}.batch: {stage.batch} rows cannot be split over data x fsdp = {devices} devices "
            f"in {stage.accumulate} parts."
        )


def _announce(stage: Stage, shapes: tree.Tree, trainable: tree.Tree, data: Dataset) -> None:
    total, trained = tree.count(shapes), tree.count(trainable)
    logging.info(
        "Stage %s: %d steps of %d rows; %s of %s parameters trained (%.2f %%); rows %.0f %% full.",
        *(
            stage.name,
            stage.steps,
            stage.batch,
            f"{trained:,}",
            f"{total:,}",
            100 * trained / total,
            100 * data.fill,
        ),
    )


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process in the midst of a step."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
