"""What a run tells of itself: metrics on disk, a progress bar, timers, and a count of compilations.

A step, everywhere here, is the number of training steps done. Of several processes only the first writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mmjax.errors import MissingPackage
from mmjax.files import DiskError, append_lines, make_folder, write_text, writing

WAITING = 1000  # points that may wait for TensorBoard's thread: if it dies of a full disk, nobody waits for it
PLAIN_SECONDS = 30.0  # between two lines of progress where no bar can be drawn
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations = 0


def _count_compilation(event: str, duration: float, **_: Any) -> None:
    global _compilations
    if event == _COMPILE_EVENT:
        _compilations += 1


# At import, for a listener hears only what comes after it.
jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compilations() -> int:
    """How many programs XLA has compiled (or fetched from its disk cache) in this process since the import."""
    return _compilations


class Timer:
    """Adds up the seconds spent in its `with` blocks: `with timer: batch = next(batches)`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Timer:
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun

    def take(self) -> float:
        """The seconds so far; begins again at 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Metrics(AbstractContextManager):
    """Writes metrics to `metrics.jsonl`, to TensorBoard and, if asked for, to Weights & Biases.

    A run that resumes at `step` cuts what the killed run wrote after it, so that `metrics.jsonl` reads like
    that of a run never stopped: later lines and a line half written are removed from it, later points hidden
    from TensorBoard. W&B takes no step back: there the repeated steps keep their first values.

    Args:
      directory: the run's folder, made if need be; TensorBoard's files go to `tensorboard` in it.
      step: where the run stands: 0, or the step of the restored checkpoint.
      wandb: keyword arguments for `wandb.init`, or None for no W&B. A run resumes under its id, which is
        kept in the file `wandb_id`.

    Raises:
      MissingPackage: W&B is asked for and not installed.
      UserError: a file of these cannot be written, here or later: a full disk, or no right to.
    """

    def __init__(self, directory: str | Path, step: int, wandb: Mapping[str, Any] | None):
        self._board = self._wandb = None
        if jax.process_index() != 0:
            return
        directory = Path(directory)
        make_folder(directory)
        if wandb is not None:
            self._wandb = _start_wandb(directory, wandb)
        self._lines, self._events = directory / "metrics.jsonl", directory / "tensorboard"
        _cut(self._lines, step)
        with writing(self._events):
            self._board = SummaryWriter(str(self._events), purge_step=step + 1, max_queue=WAITING)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line, `{"step": step, "time": seconds since 1970, **values}`, at once.

        Args:
          values: name -> number, or an array of one; one not finite is `null` in the file, as JSON has no NaN.

        Raises:
          UserError: the disk is full, or the file has become unwritable.
        """
        if self._board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": int(step), "time": round(time.time(), 3), **finite}
        append_lines(self._lines, [json.dumps(line, allow_nan=False)])
        if not self._board.file_writer.event_writer._worker.is_alive():  # an OSError ended it, and it tells nobody
            raise DiskError(
                f"{self._events}: cannot be written to. Make room there, then give the same command again."
            )
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        """Closes the files, and the W&B run. Raises UserError if TensorBoard's last points cannot be written."""
        if self._wandb is not None:
            self._wandb.finish()
        if self._board is not None:
            with writing(self._events):
                try:
                    self._board.close()
                except OSError:
                    _abandon(self._board)
                    raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What has gone wrong already is what is told: a disk that is full is so for the last points as well.
        with contextlib.suppress(*[DiskError] if kind else []):
            self.close()


def _abandon(board: SummaryWriter) -> None:
    """Leaves the writer as it is; it would try again when the process ends, and print a traceback each time."""
    writer = board.file_writer.event_writer
    writer._worker.stop()
    writer._closed = True


def _cut(path: Path, step: int) -> None:
    """Keeps the whole lines up to `step`, in a new file that takes the old one's place at once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # a kill in the midst of a write
            said = json.loads(line)
            at = said.get("step") if isinstance(said, dict) else None
            if line.endswith("\n") and isinstance(at, int | float) and at <= step:
                kept.append(line)
    write_text(path, "".join(kept))


def require_wandb() -> Any:
    """The module wandb, an extra that not everyone has. Raises MissingPackage."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "wandb is asked for in the config and not installed: pip install 'mmjax[wandb]', or set wandb to None."
        ) from error
    return wandb


def _start_wandb(directory: Path, arguments: Mapping[str, Any]) -> Any:
    wandb = require_wandb()
    identity = directory / "wandb_id"
    if not identity.exists():
        write_text(identity, uuid.uuid4().hex)
    known = {"dir": str(directory), "id": identity.read_text(), "resume": "allow"}
    return wandb.init(**known | dict(arguments))


class Progress(AbstractContextManager):
    """A stage's progress on the terminal: a bar or, where `stream` is no terminal, a plain line now and then.

    Args:
      stage: its name.
      total: its number of steps.
      step: where it stands.
      stream: None for standard error.
    """

    def __init__(self, stage: str, total: int, step: int, stream: TextIO | None = None):
        self._stage, self._total, self._step = stage, total, step
        self._stream = stream or sys.stderr
        self._seconds_per_step: float | None = None  # smoothed, for the time left
        self._updates = 0
        self._then = time.perf_counter()
        self._printed = -math.inf
        self._quiet = jax.process_index() != 0
        self._bar = None
        if not self._quiet and self._stream.isatty():
            # The text goes where tqdm has the description: before its postfix it would put a comma.
            layout = f"{stage} {{n_fmt}}/{{total_fmt}} |{{bar}}| {{desc}}"
            self._bar = tqdm(total=total, initial=step, file=self._stream, dynamic_ncols=True, bar_format=layout)

    def update(self, step: int, loss: float, tokens: int, slots: int, waited: float) -> dict[str, float]:
        """Shows where the stage stands; the rates are those since the update before.

        Args:
          loss: the latest.
          tokens, slots: real tokens, and all places of the batches (rows x length), since the update before.
          waited: seconds spent waiting for the loader since then.

        Returns:
          `tokens_per_second`, `slots_per_second`, `steps_per_second` and `loader_wait`, the share of time
          waiting, for the metrics.
        """
        now = time.perf_counter()
        seconds, self._then = max(now - self._then, 1e-9), now
        steps, self._step = step - self._step, step
        rates = {
            "tokens_per_second": tokens / seconds,
            "slots_per_second": slots / seconds,
            "steps_per_second": steps / seconds,
            "loader_wait": min(waited / seconds, 1.0),
        }
        self._updates += 1
        if self._updates > 1 and steps > 0:  # the first holds the compilation, and would foretell days
            latest, before = seconds / steps, self._seconds_per_step
            self._seconds_per_step = latest if before is None else 0.7 * before + 0.3 * latest
        if not self._quiet:
            self._show(now, loss, rates)
        return rates

    def _show(self, now: float, loss: float, rates: Mapping[str, float]) -> None:
        left = "?"
        if self._step >= self._total:
            left = "00:00"
        elif self._seconds_per_step is not None:
            left = tqdm.format_interval(self._seconds_per_step * (self._total - self._step))
        text = (
            f"loss {loss:.4f} | {_short(rates['tokens_per_second'])} tokens/s "
            f"in {_short(rates['slots_per_second'])} slots/s | loader {rates['loader_wait']:.0%} | left {left}"
        )
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(self._step - self._bar.n)
        elif now - self._printed >= PLAIN_SECONDS or self._step >= self._total:
            self._printed = now
            print(f"{self._stage} {self._step}/{self._total} | {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(number: float) -> str:
    return tqdm.format_sizeof(number) if number >= 1000 else f"{number:.0f}"
