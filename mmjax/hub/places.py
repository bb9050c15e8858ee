"""Where a conversion reads from and writes to."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import UserError
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
    """A folder to write to: a new one, or one that is empty. After an error, what was written is removed.

    Raises:
      CheckpointError: it is a file, or holds something, or cannot be written to.
    """
    path = Path(path).expanduser()
    try:
        there = path.is_dir()
        if path.exists() and not there:
            raise CheckpointError(f"{path}: is a file; give a new folder.")
        if there and any(path.iterdir()):
            raise CheckpointError(f"{path}: is not empty; give a new folder.{_unfinished(path)}")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be made: {error.strerror}.") from error
    try:
        yield path
    except BaseException as error:
        for one in path.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        if not there:
            path.rmdir()
        if isinstance(error, OSError) and not isinstance(error, UserError) and error.errno in _REFUSED:
            raise CheckpointError(f"{error.filename or path}: {error.strerror}.") from error
        raise


def _unfinished(path: Path) -> str:
    """A hint, where a conversion was killed before it wrote config.json, its last file."""
    began = any(path.rglob("*.partial")) or any(path.glob("weights/*.safetensors"))
    return "" if not began or (path / "config.json").exists() else " A conversion into it did not end: delete it."
