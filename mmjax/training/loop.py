"""Runs the stages of a config, one after the other, in one workdir; and goes on where a stopped run stood."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax import tree
from mmjax.config import Config, Stage, build_model, example_media, read_config
from mmjax.data.pipeline import Dataset, make_dataset
from mmjax.data.tokenizer import Tokenizer
from mmjax.model import MultimodalLM
from mmjax.nn.linear import add_lora
from mmjax.sharding import batch_sharding, make_mesh, shard_tree
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.metrics import Metrics, Progress, Timer, compilations
from mmjax.training.optimizer import make_optimizer
from mmjax.training.state import TrainState, make_state
from mmjax.training.step import make_evaluation, make_step
from mmjax.types import Batch
from mmjax.workdir import keep_tokenizer, save_config

PROFILED = range(3, 8)  # steps of a `--profile` trace, after the compilation


class Stopped(Exception):
    """The run was asked to stop (SIGTERM), has saved, and may go on with the same command."""


class TooManySkipped(RuntimeError):
    """More steps had a loss or gradient that was not finite than the config allows."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: Config
    raw: Mapping[str, Any]
    workdir: Path
    model: MultimodalLM
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

    def checkpoints(self, stage: Stage) -> Checkpoints:
        return Checkpoints(self.workdir / stage.name / "checkpoints", keep=self.config.keep)

    def data(self, spec: Mapping[str, Any], rows: int | None) -> Dataset:
        spans = self.model.tokens_per_medium(example_media(self.model))
        splice = self.model.fusion == "splice"
        return make_dataset(
            spec,
            self.tokenizer,
            span=spans["image"] if splice else 1,
            splice=splice,
            rows=rows,
            seed=self.config.seed,
            data_dir=self.config.data_dir,
            quarantine=self.workdir / "quarantine.jsonl",
        )


def train(raw: Mapping[str, Any], workdir: str | Path, *, only: str | None = None, profile: bool = False) -> None:
    """Trains all stages of a config that are not done yet, or the stage named `only`.

    The same call on the same workdir resumes; on the same devices and mesh, bit-equal with a run that was never
    stopped. SIGTERM saves, then raises Stopped.

    Args:
      raw: the resolved config as a dict.
      profile: write a profiler trace of a few steps to `workdir/STAGE/profile`.
    """
    config, workdir = read_config(raw), Path(workdir)
    save_config(raw, workdir)
    tokenizer = keep_tokenizer(config.tokenizer, workdir)
    mesh = make_mesh(config.mesh)
    run = Run(config, raw, workdir, build_model(config, tokenizer.vocab_size), tokenizer, mesh)
    chosen = [config.stage(only)] if only else config.stages
    with jax.set_mesh(mesh), _sigterm() as stop:
        for stage in chosen:
            with run.checkpoints(stage) as checkpoints:
                if checkpoints.latest() != stage.steps:
                    _train_stage(run, stage, checkpoints, stop, profile)


def _train_stage(run: Run, stage: Stage, checkpoints: Checkpoints, stop: threading.Event, profile: bool) -> None:
    config = run.config
    if stage.batch % (run.mesh.shape["data"] * run.mesh.shape["fsdp"] * stage.accumulate):
        raise ValueError(
            f"{stage.name}.batch: {stage.batch} rows cannot be split over data x fsdp = "
            f"{run.mesh.shape['data']} x {run.mesh.shape['fsdp']} devices in {stage.accumulate} parts."
        )
    data = run.data(stage.data, stage.steps * stage.batch)
    valid = run.data(stage.valid["data"], None) if stage.valid else None
    shapes = parameter_shapes(run.config, run.model, stage)
    trainable, _ = tree.partition(shapes, tree.select(stage.trainable, shapes, f"{stage.name}.trainable"))
    optimizer, schedule = make_optimizer(stage.optimizer, stage.steps, trainable)
    _announce(stage, shapes, trainable, data)

    def begin(params: Any) -> TrainState:
        rng = jax.random.key(config.seed)
        return make_state(
            params,
            stage.trainable,
            optimizer,
            rng,
            frozen_dtype=jnp.dtype(config.precision.frozen_dtype),
            ema=stage.ema > 0,
        )

    shardings = shard_tree(abstract := jax.eval_shape(begin, shapes), run.mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    if checkpoints.latest() is None:
        params = _starting_parameters(run, stage, shapes)
        state, position = jax.jit(begin, out_shardings=shardings, donate_argnums=0)(params), 0
    else:
        state, position = _resume(checkpoints, abstract, data)
    step = make_step(run.model, stage.losses, optimizer, accumulate=stage.accumulate, ema=stage.ema)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    measure = jax.jit(make_evaluation(run.model, stage.losses))
    directory = run.workdir / stage.name
    with (
        Metrics(directory, position, config.wandb) as metrics,
        Progress(stage.name, stage.steps, position) as progress,
    ):
        loop = _Loop(run, stage, checkpoints, data, valid, schedule, step, measure, metrics, progress)
        loop.run(state, position, stop, directory / "profile" if profile else None)


@dataclasses.dataclass
class _Loop:
    """The steps of one stage."""

    stage_run: Run
    stage: Stage
    checkpoints: Checkpoints
    data: Dataset
    valid: Dataset | None
    schedule: Any
    step: Any
    measure: Any
    metrics: Metrics
    progress: Progress

    def run(self, state: TrainState, position: int, stop: threading.Event, profile: Path | None) -> None:
        stage, started = self.stage, position
        batches = self._load(self.data, position)
        waiting, window, warm = Timer(), [], None
        while position < stage.steps:
            if profile and position - started == PROFILED.start:
                jax.profiler.start_trace(profile)
            with waiting:
                batch = next(batches)
            state, results = self.step(state, batch)
            window.append(results)
            position += 1
            if profile and position - started == PROFILED.stop:
                jax.block_until_ready(state.step)
                jax.profiler.stop_trace()
            if position % stage.log_every == 0 or position in (started + 1, stage.steps):
                warm = self._log(window, position, waiting.take(), warm)
                window = []
            if self.valid and position % stage.valid["every"] == 0:
                before = compilations()
                self.metrics.write(position, self._validate(state))
                warm += compilations() - before if position < started + 2 * stage.valid["every"] else 0
            if stop.is_set():
                self._save(state, position)
                raise Stopped(
                    f"Stopped in stage {stage.name!r} after step {position} of {stage.steps}, all saved."
                )
            if position % stage.save_every == 0 or position == stage.steps:
                self._save(state, position)
        self.checkpoints.wait()

    def _log(self, window: list[Mapping[str, jax.Array]], position: int, waited: float, warm: int | None) -> int:
        """Writes the means of the steps since the last time; returns the count of compilations at warm-up."""
        steps = [{name: float(value) for name, value in results.items()} for results in jax.device_get(window)]
        skipped = [i for i, s in enumerate(steps) if not np.isfinite([s["loss"], s["grad_norm"]]).all()]
        for i in skipped:
            self._report_skipped(position - len(steps) + i, int(steps[i]["skipped"]))
        good = [s for i, s in enumerate(steps) if i not in skipped] or steps[-1:]
        values = {name: float(np.mean([s[name] for s in good])) for name in good[0]}
        tokens, slots = (int(sum(s[name] for s in steps)) for name in ("tokens", "slots"))
        rates = self.progress.update(position, values["loss"], tokens, slots, waited)
        warm = compilations() if warm is None else warm
        self.metrics.write(
            position,
            values
            | rates
            | {
                "skipped": steps[-1]["skipped"],
                "learning_rate": float(self.schedule(position - 1)),
                "compilations": compilations() - warm,
            },
        )
        return compilations() if len(steps) == 1 else warm

    def _report_skipped(self, step: int, count: int) -> None:
        rows = range(step * self.stage.batch, (step + 1) * self.stage.batch)
        ids = [self.data.feeds[s].source[i].id for row in rows for s, i in self.data.plan.row(row)]
        logging.error(
            "%s step %d: the loss or its gradient is not finite; the parameters are kept. %d such steps so far. "
            "Samples: %s",
            *(self.stage.name, step + 1, count, ", ".join(ids[:16]) + (" ..." if len(ids) > 16 else "")),
        )
        limit = self.stage_run.config.max_skipped
        if count > limit:
            raise TooManySkipped(
                f"{self.stage.name}: {count} steps had a loss or gradient that is not finite, config.max_skipped "
                f"allows {limit}. Lower the learning rate, clip gradients, or look at the samples named above."
            )

    def _load(self, data: Dataset, start: int) -> Iterator[Batch]:
        sharding = batch_sharding(self.stage_run.mesh)
        for batch in data.batches(self.stage.batch, start, jax.process_index(), jax.process_count()):
            yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def _validate(self, state: TrainState) -> dict[str, float]:
        """The losses on held-out data, by the averaged parameters if there are any."""
        params = tree.merge(state.frozen, state.ema or state.params)
        sums = None
        for batch in self._load(self.valid, 0):
            new = self.measure(params, batch)
            sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
        if sums is None:
            raise ValueError(f"{self.stage.name}.valid: has fewer rows than a batch of {self.stage.batch}.")
        return {f"valid_{name}": float(s / w) for name, (s, w) in jax.device_get(sums).items()}

    def _save(self, state: TrainState, position: int) -> None:
        self.checkpoints.save(
            position,
            {
                "params": {"trainable": state.params, "frozen": state.frozen, "ema": state.ema},
                "optimizer": state.optimizer,
                "rest": {"step": state.step, "skipped": state.skipped, "rng": state.rng},
            },
            {"rows": position * self.stage.batch, "fingerprint": self.data.fingerprint},
            json.dumps(self.stage_run.raw),
        )


def _resume(checkpoints: Checkpoints, abstract: TrainState, data: Dataset) -> tuple[TrainState, int]:
    restored = checkpoints.restore(
        {
            "params": {"trainable": abstract.params, "frozen": abstract.frozen, "ema": abstract.ema},
            "optimizer": abstract.optimizer,
            "rest": {"step": abstract.step, "skipped": abstract.skipped, "rng": abstract.rng},
        }
    )
    if restored.data["fingerprint"] != data.fingerprint:
        raise ValueError(
            "The data is not what this stage was trained on so far (other records, lengths, weights or seed): "
            "restore it, or begin in another --workdir."
        )
    params, rest = restored.state["params"], restored.state["rest"]
    state = TrainState(
        params=params["trainable"],
        frozen=params["frozen"],
        ema=params["ema"],
        optimizer=restored.state["optimizer"],
        **rest,
    )
    return state, restored.step


def parameter_shapes(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    """Shapes of all parameters in a stage, the adapters of this and earlier stages included."""
    return jax.eval_shape(lambda: _initialise(config, model, stage))


def _initialise(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    params = model.init(jax.random.key(config.seed), example_media(model))
    for index, each in enumerate(config.stages[: config.stages.index(stage) + 1]):
        params = add_lora(params, each.lora, jax.random.fold_in(jax.random.key(config.seed), index))
    return params


def _starting_parameters(run: Run, stage: Stage, shapes: tree.Tree) -> dict[str, Any]:
    """From scratch for the first stage, else what the stage before ended with."""
    shardings = shard_tree(shapes, run.mesh)
    fresh = jax.jit(lambda: _initialise(run.config, run.model, stage), out_shardings=shardings)
    index = run.config.stages.index(stage)
    if index == 0:
        return fresh()
    before = run.config.stages[index - 1]
    with run.checkpoints(before) as checkpoints:
        if checkpoints.latest() != before.steps:
            raise ValueError(
                f"Stage {stage.name!r} starts from {before.name!r}, not done in {run.workdir}; train that first."
            )
        params = trained_parameters(checkpoints)
    # Adapters that this stage adds are not in the checkpoint: those come fresh.
    given = tree.flatten(params)
    missing = {p: leaf for p, leaf in tree.flatten(shapes).items() if p not in given}
    flat = given | ({p: leaf for p, leaf in tree.flatten(fresh()).items() if p in missing})
    wanted = tree.flatten(shapes)
    if trouble := tree.explain_mismatch(wanted, flat):
        raise ValueError(f"Stage {stage.name!r} cannot start from {before.name!r}:\n{trouble}")
    placed = tree.flatten(shardings)
    return tree.unflatten({p: jax.device_put(flat[p].astype(wanted[p].dtype), placed[p]) for p in wanted})


def trained_parameters(checkpoints: Checkpoints) -> dict[str, Any]:
    """The whole model's parameters at the newest step: averaged where the stage kept a running mean."""
    saved = checkpoints.restore_params()
    return tree.merge(saved.get("frozen") or {}, saved["trainable"], saved.get("ema") or {})


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
