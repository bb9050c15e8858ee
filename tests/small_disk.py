"""Disks that refuse: a folder without the right to write into it, and a file that finds no room to grow."""

import contextlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

ROOM = 1 << 20  # bytes of the largest file on a full disk


@contextlib.contextmanager
def other_folder():
    """An empty folder that any user can enter, as pytest's own cannot be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def read_only(folder):
    """Nothing can be written into the folder; root, who may write anywhere, is somebody else meanwhile."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)
        folder.chmod(0o755)


@contextlib.contextmanager
def full_disk():
    """No file grows beyond ROOM: a write that would is cut there, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
