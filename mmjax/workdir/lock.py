"""One training at a time in a workdir."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import UserError
from mmjax.files import lock_folder


@contextlib.contextmanager
def locked(workdir: Path, writes: bool) -> Iterator[None]:
    """Makes the workdir and keeps other trainings on this machine out of it; a killed one leaves no lock.

    writes: whether this is the process that writes into it, of those that train together.

    Raises:
      UserError: another process trains there, or no such folder can be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot be used as a folder ({error.strerror}).") from error
    try:
        if writes:
            lock_folder(folder, workdir)
        yield
    finally:
        os.close(folder)
