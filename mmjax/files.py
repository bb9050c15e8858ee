"""Files that users name, and that may come from anyone: what is wrong with them or the disk is a UserError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import reprlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmjax.errors import UserError

LARGEST = 64 << 20  # bytes
DEEPEST = 50  # objects and lists in one another: what reads them may recurse
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
PROBE = 4096  # bytes written to see whether a disk has room: a block


class DiskError(UserError):
    """A file or folder that the operating system does not let be written."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes of an OSError inside a DiskError that names the path, the reason and a remedy."""
    try:
        yield
    except UserError:  # a MissingFile is an OSError, too
        raise
    except OSError as error:
        remedy = "See to it, then give the same command again."
        if error.errno in FULL:
            remedy = "Make room there, then give the same command again."
        elif error.errno in FORBIDDEN:
            remedy = "Get the right to write there, or work in a copy elsewhere."
        reason = error.strerror or error
        raise DiskError(f"{os.fspath(path)}: cannot be written to ({reason}). {remedy}") from error


def check_writable(folder: Path) -> None:
    """Raises DiskError if no file can be written in a folder: for lack of rights, or of room."""
    with writing(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(bytes(PROBE))


def write_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all: it takes the old one's place at once. Raises DiskError."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.writing")
    with writing(file):
        try:
            partial.write_text(text, encoding="utf-8", newline="")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def append_lines(file: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Appends lines to a file, made if need be, at once; one left half written before them ends there.

    Raises:
      DiskError: it cannot be written, or not to the end.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    with writing(file), open(file, "ab+", buffering=0) as log:
        if log.seek(0, os.SEEK_END):
            log.seek(-1, os.SEEK_END)
            if log.read(1) != b"\n":
                data = b"\n" + data
        rest = memoryview(data)
        while rest:  # of a disk that gets full a part is written, and the next write says why
            rest = rest[log.write(rest) :]


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of one JSON value a line; other lines, as a killed process leaves, are passed over.

    Nothing if there is no file. Raises UserError if it cannot be read."""
    try:
        text = file.read_text("utf-8", errors="replace") if file.exists() else ""
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}.") from error
    for line in text.split("\n"):  # and not at every line end of Unicode: a string may hold one
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def json_object(file: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file of at most so many bytes. Raises UserError, naming the file, if there is none."""
    try:
        if file.stat().st_size > largest:
            raise UserError(f"{file}: has {file.stat().st_size} bytes; such a file has {largest} at most.")
        found = json.loads(file.read_text("utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object.")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    if level:
        raise UserError(f"{file}: is nested more than {DEEPEST} deep.")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # what no path and no tokenizer takes
        raise UserError(f"{file}: holds half a surrogate pair: a character was cut in two.") from error
    return found


def lock_folder(folder: int, path: Path) -> None:
    """Locks an open folder (its descriptor) for this process; the lock goes with the process.

    Raises:
      UserError: another process holds it.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{path}: another process is training or writing there; wait for it to end, or give another folder."
        ) from error
    except OSError:  # a file system without locks
        logging.warning("%s cannot be locked: see to it that no other process writes there.", path)


def require_inside(path: str, workdir: str | os.PathLike[str], what: str) -> None:
    """Raises UserError for a path out of the workdir, by itself or through a link."""
    root = os.path.realpath(workdir)
    if "\0" in path or os.path.commonpath([root, os.path.realpath(os.path.expanduser(path))]) != root:
        raise UserError(
            f"{what}: {reprlib.repr(path)} lies outside the workdir {os.fspath(workdir)}, which is read by "
            "itself: copy the file into it."
        )


def make_folder(folder: Path) -> None:
    """Makes a folder and those that it lies in. Raises UserError if a file is in the way, or it is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if folder.is_file() else error.strerror
        raise UserError(f"{folder}: cannot be made a folder ({reason}); choose another.") from error
