"""The loop of one stage: steps, metrics, validation, saves; and what stops it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from mmjax import tree
from mmjax.data.pipeline import Dataset
from mmjax.errors import UserError
from mmjax.sharding import batch_sharding
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.metrics import Metrics, Progress, Timer, compilations
from mmjax.training.setup import Setup
from mmjax.training.state import TrainState
from mmjax.types import Batch

PROFILED = range(3, 8)  # steps of a `--profile` trace, after the compilation, if as many are left


class Stopped(Exception):
    """The run was asked to stop (SIGTERM), has saved, and may go on with the same command."""


class TooManySkipped(UserError):
    """More steps had a loss or gradient that was not finite than the config allows."""


@dataclasses.dataclass
class Loop:
    """The steps of one stage.

    config: the whole run's, as it is saved with each checkpoint. record: writes it into the workdir; given False,
    only where there is none. clock: time.perf_counter() when the stage began, had it never been stopped.
    """

    setup: Setup
    config: str
    record: Callable[[bool], None]
    max_skipped: int
    data: Dataset
    valid: Dataset | None
    checkpoints: Checkpoints
    metrics: Metrics
    progress: Progress
    clock: float

    def run(self, state: TrainState, position: int, stop: threading.Event, profile: Path | None) -> None:
        """Trains from step `position` to the end of the stage.

        Raises:
          Stopped: `stop` was set; all is saved. TooManySkipped: see Config.max_skipped.
        """
        stage, started, window = self.setup.stage, position, []
        waiting, left = Timer(), stage.steps - position
        profiled = range(min(PROFILED.start, left - 1), min(PROFILED.stop, left))
        batches = self._load(self.data, position)
        while position < stage.steps:
            if profile and position - started == profiled.start:
                jax.profiler.start_trace(profile)
            with waiting:
                batch = next(batches)
            state, results = self.setup.step(state, batch)
            window.append(results)
            position += 1
            if profile and position - started == profiled.stop:
                jax.block_until_ready(state.step)
                jax.profiler.stop_trace()
            if position == started + 1:
                jax.block_until_ready(state.step)
                self.setup.schedule(position)  # a handful of scalar programs, for the log
                self.record(False)
                self.warm = compilations()  # what compiles after this is a shape that should not have changed
            if position % stage.log_every == 0 or position == stage.steps:
                self._log(window, position, waiting.take())
                window = []
            if self.valid and position % stage.valid.every == 0:
                self.metrics.write(position, self._validate(state))
            if position % stage.save_every == 0 or position == stage.steps or stop.is_set():
                self._save(state, position)
            if stop.is_set():
                self.checkpoints.wait()
                where = f"stage {stage.name!r} after step {position} of {stage.steps}"
                raise Stopped(f"Stopped in {where}, all saved.")
        self.checkpoints.wait()

    def _log(self, window: list[Mapping[str, jax.Array]], position: int, waited: float) -> None:
        """Writes the means of the steps since the last time."""
        steps = [{name: float(value) for name, value in results.items()} for results in jax.device_get(window)]
        finite = [bool(np.isfinite([s["loss"], s["grad_norm"]]).all()) for s in steps]
        for i in np.flatnonzero(~np.array(finite)):
            self._report_skipped(position - len(steps) + int(i), int(steps[i]["skipped"]))
        good = [s for s, ok in zip(steps, finite, strict=True) if ok] or steps[-1:]
        values = {name: float(np.mean([s[name] for s in good])) for name in good[0]}
        tokens, slots = (int(sum(s[name] for s in steps)) for name in ("tokens", "slots"))
        more = {
            "skipped": steps[-1]["skipped"],
            "seconds": time.perf_counter() - self.clock,
            "learning_rate": float(self.setup.schedule(position - 1)),
            "compilations": compilations() - self.warm,
        }
        rates = self.progress.update(position, values["loss"], tokens, slots, waited)
        self.metrics.write(position, values | rates | more)

    def _report_skipped(self, step: int, count: int) -> None:
        rows = range(step * self.setup.stage.batch, (step + 1) * self.setup.stage.batch)
        ids = self.data.ids(rows)
        logging.error(
            "%s step %d: the loss or its gradient is not finite; the parameters are kept. %d such steps so far. "
            "Samples: %s",
            *(self.setup.stage.name, step + 1, count, ", ".join(ids[:16]) + (" ..." if len(ids) > 16 else "")),
        )
        if count > self.max_skipped:
            raise TooManySkipped(
                f"{self.setup.stage.name}: {count} steps had a loss or gradient that is not finite; max_skipped "
                f"allows {self.max_skipped}. Lower the learning rate, clip, or look at the samples named above."
            )

    def _load(self, data: Dataset, start: int) -> Iterator[Batch]:
        """Global batches on the mesh, each process giving its share of the rows."""
        sharding = batch_sharding(self.setup.mesh)
        for batch in data.batches(self.setup.stage.batch, start, jax.process_index(), jax.process_count()):
            yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def _validate(self, state: TrainState) -> dict[str, float]:
        """The losses on held-out data, by the averaged parameters if there are any."""
        before = compilations()
        params = tree.merge(state.frozen, state.ema or state.params)
        sums = [jax.device_get(self.setup.measure(params, batch)) for batch in self._load(self.valid, 0)]
        self.warm += compilations() - before  # the first time compiles `measure`
        totals = {name: np.sum([s[name] for s in sums], axis=0) for name in sums[0]}
        return {f"valid_{name}": float(total / max(weight, 1e-8)) for name, (total, weight) in totals.items()}

    def _save(self, state: TrainState, position: int) -> None:
        self.record(True)
        self.checkpoints.save(
            position,
            {
                "params": {"trainable": state.params, "ema": state.ema},
                "optimizer": state.optimizer,
                "rest": {"step": state.step, "skipped": state.skipped, "rng": state.rng},
            },
            {
                "rows": position * self.setup.stage.batch,
                "fingerprint": self.data.fingerprint,
                "seconds": time.perf_counter() - self.clock,
            },
            self.config,
        )
