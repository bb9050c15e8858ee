"""Checkpoints: the whole training state, saved in the background, verified when it comes back.

One folder a step, written by Orbax: the named parts of the state apart (so that inference can read `params`
alone), the data position and the config beside them. The frozen parameters are the same in every step: they lie
in the folder `frozen`, written once before the first step, in the precision that they came in. Orbax writes a
folder under a temporary name and gives it its own by an atomic rename, so whatever bears a number was written to
the end. Then comes the seal (seal.py), against which a restore compares.

A run may be killed at any moment. A kill during a save leaves a temporary folder, which the next save removes.
A kill between the rename and the seal leaves a whole step without a manifest: it is restored with a warning that
it could not be verified, and given up for the step before if it cannot be read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mmjax.errors import MissingFile, UserError
from mmjax.training.pytrees import MismatchError, check, open_pytree, start_save, with_arrays
from mmjax.training.seal import MANIFEST, UNREADABLE, find_fault, seal

log = logging.getLogger(__name__)

FROZEN = "frozen"  # the folder beside the steps


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns: the named parts, the data position, and the step it stems from."""

    state: dict[str, Any]
    data: dict[str, Any]
    step: int


class Checkpoints(AbstractContextManager):
    """The checkpoints of one run. Every process calls every method, as with a jitted step.

    Args:
      directory: where the steps lie; with several processes, a folder they share. The first save makes it.
      keep: how many of the newest steps stay; with 1 there is none to fall back to.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        if keep < 1:
            raise UserError(f"keep={keep}: at least one checkpoint must stay; 2 leave one to fall back to.")
        self.directory = epath.Path(directory).resolve()
        self.keep = keep
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[epath.Path, Future[None]] | None = None

    def steps(self) -> list[int]:
        """The saved steps, oldest first; a damaged one too, for nothing is read."""
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest saved step, None without any."""
        return max(self.steps(), default=None)

    @property
    def begun(self) -> bool:
        """Whether a step was ever saved, were it damaged since."""
        return bool(self.steps()) or bool(self._damaged())

    def begin(self, frozen: Any) -> None:
        """Saves the frozen parameters of a run without steps, in the background as `save` does.

        Raises:
          UserError: the save in flight failed.
        """
        self.wait()
        if jax.process_index() == 0:
            if self._frozen().exists():  # of a run that was killed before its first save
                self._frozen().rename(self.directory / f"{FROZEN}.removed")
            self._sweep()
        if jax.tree.leaves(frozen):
            self._write(self._frozen(), {"params": {FROZEN: frozen}}, {})

    def save(
        self, step: int, state: Mapping[str, Any], data: Mapping[str, Any], config: str, wait: bool = False
    ) -> None:
        """Saves a step in the background; returns once the arrays are copied to the host.

        After that the caller may donate them. One save is in flight at most: the next waits for it. A step
        that is saved already is left alone.

        Args:
          step: how many training steps are done.
          state: named pytrees of arrays; `params` is the one that inference reads, less the frozen ones.
          data: the position in the data, as JSON.
          config: the resolved config, as text.
          wait: return only when the step is committed and sealed.

        Raises:
          UserError: a save failed (a full disk, ...): the one before or, with `wait`, this one.
          TypeError: `data` is not JSON.
        """
        self.wait()
        beside = {"data": json.loads(json.dumps(data)), "config": config, "frozen": self._frozen().exists()}
        if step not in self.steps():
            if jax.process_index() == 0:
                self._sweep()
            self._write(self._path(step), state, beside)
        if wait:
            self.wait()

    def verify(self) -> int | None:
        """The newest step whose files are all as they were written; newer ones are set aside, as by `restore`."""
        self.wait()
        return self._newest_whole(set_aside=True)

    def restore(self, abstract: Mapping[str, Any]) -> Restored:
        """The newest whole step, equal to the bit, each array on the sharding that `abstract` gives it.

        A step found damaged is renamed to `damaged-<step>`, out of the way of the steps to come, with a
        warning that names the file.

        Args:
          abstract: the mapping that was saved, its leaves `jax.ShapeDtypeStruct`s that carry shardings.

        Raises:
          MissingFile: there is no step, or none is whole.
          UserError: the parts, paths, shapes or dtypes are not those of the checkpoint.
        """
        self.wait()
        while (step := self._newest_whole(set_aside=True)) is not None:
            path = self._path(step)
            try:
                found = ocp.checkpointables_metadata(path)
                check(abstract, found.metadata, path, subset=False)
                parts = ocp.load_checkpointables(path, with_arrays(abstract))
                return Restored({**abstract, **parts}, found.custom_metadata["data"], step)
            except MismatchError:
                raise
            except UNREADABLE as error:
                if (path / MANIFEST).exists():
                    raise  # the files are what was written: the fault is not theirs
                if jax.process_index() == 0:
                    self._set_aside(step, f"it cannot be read ({error})")
        raise MissingFile(self._none_whole())

    def restore_frozen(self, abstract: Any) -> Any:
        """The frozen parameters, on the shardings and in the dtypes that `abstract` gives them.

        Raises:
          MissingFile: they are not there.
          UserError: they are damaged, or not those asked for.
        """
        if not jax.tree.leaves(abstract):
            return abstract
        return open_pytree(self._whole_frozen())[1]({FROZEN: abstract})[FROZEN]

    def open_params(self, step: int | None = None) -> tuple[Any, Callable[[Any], Any]]:
        """The `params` of a step, None for the newest with whole ones, and under `frozen` the frozen parameters;
        their files alone are verified, once, here.

        Returns:
          Their shapes, a pytree of `jax.ShapeDtypeStruct`s, and what reads such a pytree with shardings: a subset
          will do, and another dtype casts; it raises UserError for what was not saved.

        Raises:
          MissingFile: there is no such step, or none is whole.
          UserError: the step asked for is damaged.
        """
        path = self._choose(step, parts=["params"])
        saved, read = open_pytree(path)
        if not ocp.metadata(path, "params").custom_metadata.get("frozen"):
            return saved, read
        frozen, read_frozen = open_pytree(self._whole_frozen())

        def read_both(abstract: Any) -> Any:
            chosen = [part for part in abstract if part != FROZEN]
            found = read({part: abstract[part] for part in chosen}) if chosen else {}
            return found | (read_frozen({FROZEN: abstract[FROZEN]}) if FROZEN in abstract else {})

        return saved | frozen, read_both

    def config(self, step: int | None = None) -> str:
        """The config's text as it was saved with a step; None for the newest.

        Raises:
          MissingFile: there is no such step.
        """
        return ocp.checkpointables_metadata(self._choose(step, parts=[])).custom_metadata["config"]

    def wait(self) -> None:
        """Waits until the save in flight is committed and sealed.

        Raises:
          UserError: it failed.
        """
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise UserError(f"{path}: saving the checkpoint failed: {error}") from error

    def close(self) -> None:
        """Waits for the save in flight; the object is of no use afterwards."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _frozen(self) -> epath.Path:
        return self.directory / FROZEN

    def _whole_frozen(self) -> epath.Path:
        """Their folder. Raises MissingFile if it is not there, UserError if it is damaged."""
        path = self._frozen()
        remedy = f"Put a copy in place, or remove {self.directory} to train the stage again."
        if not path.exists():
            raise MissingFile(f"{path}: the stage's frozen parameters are missing. {remedy}")
        if fault := find_fault(path, None):
            raise UserError(f"{path}: the stage's frozen parameters are damaged: {fault}. {remedy}")
        return path

    def _write(self, path: epath.Path, parts: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        self._pending = path, self._worker.submit(self._finish, path, start_save(path, parts, beside))

    def _finish(self, path: epath.Path, saving: ocp.AsyncResponse[None]) -> None:
        """In the background: waits for the commit, seals it, removes the oldest steps."""
        saving.result()
        if jax.process_index() == 0:
            seal(path)
            for old in self.steps()[: -self.keep]:
                # Renamed first: killed in the midst of the removal, nothing is left that looks like a step.
                self._path(old).rename(self.directory / f"{old}.removed").rmtree()

    def _sweep(self) -> None:
        """Removes what a killed run left: `<name>.<suffix>`, half written by Orbax or half removed here."""
        if self.directory.exists():
            for path in list(self.directory.iterdir()):
                if re.fullmatch(rf"(\d+|{FROZEN})\..+", path.name):
                    path.rmtree()

    def _choose(self, step: int | None, parts: Collection[str]) -> epath.Path:
        """The folder of the step asked for or, for None, of the newest one whose parts are whole."""
        self.wait()
        if step is None:
            step = self._newest_whole(parts)
            if step is None:
                raise MissingFile(self._none_whole())
        elif step not in self.steps():
            raise MissingFile(f"{self.directory}: no checkpoint of step {step}, only of {self.steps()}.")
        elif fault := find_fault(self._path(step), parts):
            raise UserError(f"{self._path(step)} is damaged: {fault}. Ask for another of {self.steps()}.")
        return self._path(step)

    def _newest_whole(self, parts: Collection[str] | None = None, set_aside: bool = False) -> int | None:
        """The newest step without a fault; process 0 looks for it, for all must agree."""
        whole = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                fault = find_fault(self._path(step), parts)
                if not fault:
                    whole = step
                    break
                if set_aside:
                    self._set_aside(step, fault)
                else:
                    log.warning("DAMAGED CHECKPOINT %s: %s. Trying the step before.", self._path(step), fault)
        whole = int(multihost_utils.broadcast_one_to_all(np.int32(whole)))
        return None if whole < 0 else whole

    def _set_aside(self, step: int, fault: str) -> None:
        aside = self.directory / f"damaged-{step}"
        log.warning(
            "DAMAGED CHECKPOINT %s: %s. Moved to %s; trying the step before.", self._path(step), fault, aside
        )
        if aside.exists():
            aside.rmtree()
        self._path(step).rename(aside)

    def _none_whole(self) -> str:
        damaged = [*self._damaged(), *map(str, self.steps())]
        if not damaged:
            return f"{self.directory}: there is no checkpoint."
        return (
            f"{self.directory}: no checkpoint is whole; damaged are {', '.join(damaged)}. Put a copy of one "
            f"in place, or remove {self.directory} to train the stage again."
        )

    def _damaged(self) -> list[str]:
        """Names of the steps that were set aside."""
        return sorted(path.name for path in self.directory.glob("damaged-*")) if self.directory.exists() else []
