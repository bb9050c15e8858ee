"""Checkpoints: the whole training state, saved in the background, verified when it comes back.

One folder a step, written by Orbax: the named parts of the state apart (so that inference can read `params`
alone), the data position and the config beside them. Orbax writes a step under a temporary name and gives it
its own by an atomic rename, so whatever bears a number was written to the end. Then comes the seal:
`manifest.json` with the size and SHA-256 of every file, against which a restore compares.

A run may be killed at any moment. A kill during a save leaves a temporary folder, which the next save removes.
A kill between the rename and the seal leaves a whole step without a manifest: it is restored with a warning that
it could not be verified, and given up for the step before if it cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mmjax.errors import MissingFile, UserError
from mmjax.tree import explain_mismatch

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# What reading a damaged step raises; KeyError is Orbax's "no handler could read this".
UNREADABLE = (OSError, ValueError, KeyError)


class MismatchError(UserError):
    """The state asked for is not the one saved: no fault of the files, so no reason to fall back."""


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
        self._pending: tuple[int, Future[None]] | None = None

    def steps(self) -> list[int]:
        """The saved steps, oldest first; a damaged one too, for nothing is read."""
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest saved step, None without any."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, state: Mapping[str, Any], data: Mapping[str, Any], config: str, wait: bool = False
    ) -> None:
        """Saves a step in the background; returns once the arrays are copied to the host.

        After that the caller may donate them. One save is in flight at most: the next waits for it. A step
        that is saved already is left alone.

        Args:
          step: how many training steps are done.
          state: named pytrees of arrays; `params` is the one that inference reads.
          data: the position in the data, as JSON.
          config: the resolved config, as text.
          wait: return only when the step is committed and sealed.

        Raises:
          UserError: a save failed (a full disk, ...): the one before or, with `wait`, this one.
          TypeError: `data` is not JSON.
        """
        self.wait()
        beside = {"data": json.loads(json.dumps(data)), "config": config}
        if step not in self.steps():
            if jax.process_index() == 0:
                self._sweep()
            context = ocp.Context()
            # Compressed, trained floats are 7 % smaller and take four times as long.
            context.array.saving.use_compression = False
            with context:
                saving = ocp.save_checkpointables_async(
                    self._path(step), _without_empty(state), custom_metadata=beside
                )
            self._pending = step, self._worker.submit(self._finish, step, saving)
        if wait:
            self.wait()

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
                _check(abstract, found.metadata, path, subset=False)
                parts = ocp.load_checkpointables(path, _without_empty(abstract))
                return Restored({**abstract, **parts}, found.custom_metadata["data"], step)
            except MismatchError:
                raise
            except UNREADABLE as error:
                if (path / MANIFEST).exists():
                    raise  # the files are what was written: the fault is not theirs
                if jax.process_index() == 0:
                    self._set_aside(step, f"it cannot be read ({error})")
        raise MissingFile(self._none_whole())

    def open_params(self, step: int | None = None) -> tuple[Any, Callable[[Any], Any]]:
        """The `params` of a step, None for the newest with whole ones; its files alone are verified, once, here.

        Returns:
          Its shapes, a pytree of `jax.ShapeDtypeStruct`s, and what reads such a pytree with shardings: a subset
          will do, and another dtype casts; it raises UserError for what was not saved.

        Raises:
          MissingFile: there is no such step, or none is whole.
          UserError: the step asked for is damaged.
        """
        path = self._choose(step, parts=["params"])
        saved = ocp.metadata(path, "params").metadata

        def read(abstract: Any) -> Any:
            _check(abstract, saved, path, subset=True)
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            with context:
                return ocp.load_checkpointables(path, {"params": abstract})["params"]

        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved), read

    def config(self, step: int | None = None) -> str:
        """The config's text as it was saved with a step; None for the newest.

        Raises:
          MissingFile: there is no such step.
        """
        return ocp.metadata(self._choose(step, parts=[]), "params").custom_metadata["config"]

    def wait(self) -> None:
        """Waits until the save in flight is committed and sealed.

        Raises:
          UserError: it failed.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise UserError(f"{self._path(step)}: saving the checkpoint failed: {error}") from error

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

    def _finish(self, step: int, saving: ocp.AsyncResponse[None]) -> None:
        """In the background: waits for the commit, seals the step, removes the oldest."""
        saving.result()
        if jax.process_index() == 0:
            _seal(self._path(step))
            for old in self.steps()[: -self.keep]:
                # Renamed first: killed in the midst of the removal, nothing is left that looks like a step.
                self._path(old).rename(self.directory / f"{old}.removed").rmtree()

    def _sweep(self) -> None:
        """Removes what a killed run left: `<step>.<suffix>`, half written by Orbax or half removed here."""
        if self.directory.exists():
            for path in list(self.directory.iterdir()):
                if re.fullmatch(r"\d+\..+", path.name):
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
        elif fault := _fault(self._path(step), parts):
            raise UserError(f"{self._path(step)} is damaged: {fault}. Ask for another of {self.steps()}.")
        return self._path(step)

    def _newest_whole(self, parts: Collection[str] | None = None, set_aside: bool = False) -> int | None:
        """The newest step without a fault; process 0 looks for it, for all must agree."""
        whole = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                fault = _fault(self._path(step), parts)
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
        damaged = [*sorted(path.name for path in self.directory.glob("damaged-*")), *map(str, self.steps())]
        if not damaged:
            return f"{self.directory}: there is no checkpoint."
        return (
            f"{self.directory}: no checkpoint is whole; damaged are {', '.join(damaged)}. Put a copy of one "
            "in place, or begin again in another directory."
        )


def _without_empty(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that hold arrays: Orbax refuses to save a tree without any."""
    return {name: part for name, part in state.items() if jax.tree.leaves(part)}


def _leaves(parts: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree, for `explain_mismatch`: a named tuple's fields become keys."""
    leaves = jax.tree.leaves_with_path(parts)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check(abstract: Any, saved: Any, path: epath.Path, subset: bool) -> None:
    """Raises unless the checkpoint has what is asked for and, but for a subset, nothing else or otherwise."""
    want, have = _leaves(abstract), _leaves(saved)
    if subset:
        have = {name: have[name] for name in want if name in have}
    lines = [explain_mismatch(want, have)]
    lines += [
        f"  dtype     {name} is {have[name].dtype}, the model wants {want[name].dtype}"
        for name in want
        if not subset and name in have and np.dtype(want[name].dtype) != np.dtype(have[name].dtype)
    ]
    if any(lines):
        raise MismatchError(
            f"{path}: the config is for another model than the checkpoint:\n"
            + "\n".join(line for line in lines if line)
            + "\nTake the checkpoint's config, or another directory."
        )


def _files(path: epath.Path) -> Iterator[epath.Path]:
    for entry in sorted(path.iterdir()):
        yield from _files(entry) if entry.is_dir() else [entry]


def _seal(path: epath.Path) -> None:
    """Writes a committed step's manifest: {file: [bytes, SHA-256]}; by a rename, so whole or not there."""
    seals = {str(file.relative_to(path)): [file.stat().length, _sha256(file)] for file in _files(path)}
    writing = path / f"{MANIFEST}.writing"
    writing.write_text(json.dumps(seals, indent=1))
    writing.rename(path / MANIFEST)


def _fault(path: epath.Path, parts: Collection[str] | None) -> str:
    """What is wrong with a step, '' if nothing: in the files of these parts (None: all) and beside the parts."""
    name = MANIFEST
    try:
        if not (path / name).exists():
            return _fault_unsealed(path)
        seals = json.loads((path / name).read_text())
        for name, (length, digest) in seals.items():
            part, _, below = name.partition("/")
            if below and parts is not None and part not in parts:
                continue
            if not (path / name).exists():
                return f"{name} is missing"
            if (path / name).stat().length != length:
                return f"{name} has {(path / name).stat().length} bytes where {length} were written"
            if _sha256(path / name) != digest:
                return f"{name} is not what was written: its SHA-256 differs"
    except UNREADABLE as error:
        return f"{name} cannot be read ({error})"
    return ""


def _fault_unsealed(path: epath.Path) -> str:
    """What can be told without a manifest: Orbax writes its metadata last, so where it stands all does."""
    try:
        found = ocp.checkpointables_metadata(path)
    except UNREADABLE as error:
        return f"it is no checkpoint ({error})"
    if "data" not in (found.custom_metadata or {}):
        return "its metadata is missing, so it was not written to the end"
    unreadable = [name for name, part in found.metadata.items() if part is None]  # Orbax only logs why
    if unreadable:
        return f"{', '.join(unreadable)} cannot be read"
    log.warning("%s: its checksums are not written (yet, or for a kill just then); not verified.", path)
    return ""


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
