"""Where a conversion reads from and writes to."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import UserError
from mmjax.files import lock_folder, require_inside
from mmjax.hub.packaged import PACKAGED, packaged_model
from mmjax.hub.tensors import CheckpointError

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def find_source(given: str | Path) -> Path:
    """The folder, or the GGUF file, that is given by its path or as the name of a packaged model.

    Raises:
      CheckpointError: there is none; says what can be given.
      MissingPackage: the packaged model is not installed.
    """
    path = Path(given).expanduser()
    if not path.exists() and not (path := packaged_model(str(given))):
        raise CheckpointError(
            f"{given}: no such file or folder. Give a folder with a checkpoint of transformers (as downloaded, or "
            f"as save_pretrained writes it), a GGUF file, a workdir, or a packaged model: {', '.join(PACKAGED)}."
        )
    if path.is_file() and not _is_gguf(path):
        raise CheckpointError(
            f"{path}: is no GGUF file. Give one, or a folder with config.json and model.safetensors in it."
        )
    return path


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write to: a new one, or one that is empty, which nobody else on this machine converts or trains
    into meanwhile. After an error, what was written is removed; a killed process leaves no lock.

    Raises:
      CheckpointError: it is a file, or holds something, or cannot be written to, or another process writes there.
    """
    path = Path(path).expanduser()
    try:
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path}: is a file; give a new folder.")
        there, folder = _open_locked(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be made: {error.strerror}.") from error
    try:
        if any(path.iterdir()):
            raise CheckpointError(f"{path}: is not empty; give a new folder.{_unfinished(path)}")
        try:
            yield path
        except BaseException as error:
            # The folder was empty when it was locked: all that lies in it now is this conversion's own.
            for one in path.iterdir():
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
            if not there:
                path.rmdir()
            if isinstance(error, OSError) and not isinstance(error, UserError) and error.errno in _REFUSED:
                raise CheckpointError(f"{error.filename or path}: {error.strerror}.") from error
            raise
    finally:
        os.close(folder)


def _open_locked(path: Path) -> tuple[bool, int]:
    """Makes a folder and locks it -> (whether it was there before, its descriptor, which holds the lock).

    Raises:
      UserError: another process holds the lock.
    """
    while True:
        there = path.is_dir()
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY)
        try:
            lock_folder(folder, path)
            if os.path.exists(path) and os.path.samestat(os.fstat(folder), os.stat(path)):
                return there, folder
        except BaseException:
            os.close(folder)
            raise
        os.close(folder)  # a conversion that failed has removed the folder in between


def require_own_files(workdir: Path, *folders: str) -> None:
    """Raises UserError for a file in these folders of a workdir, at any depth, that is a link out of it."""
    for name in folders:
        require_inside(str(workdir / name), workdir, name)
        for inner, directories, files in os.walk(workdir / name):
            for one in (*directories, *files):
                path = os.path.join(inner, one)
                if os.path.islink(path):
                    require_inside(path, workdir, os.path.relpath(path, workdir))


def _unfinished(path: Path) -> str:
    """A hint, where a conversion was killed before it wrote config.json, its last file."""
    began = any(path.rglob("*.partial")) or any(path.glob("weights/*.safetensors"))
    return "" if not began or (path / "config.json").exists() else " A conversion into it did not end: delete it."
