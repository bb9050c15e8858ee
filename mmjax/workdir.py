"""What a workdir holds beside its stages' folders: the config that it was made with, and its tokenizer.

A workdir may be moved or copied: its `config.json` names what lies inside as `$WORKDIR/...`, and holds chat
templates as text. Other paths in it (data, checkpoints to load) are the user's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmjax.build import build
from mmjax.config import Config, read_config
from mmjax.data.templates import open_template
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import MissingFile, UserError
from mmjax.files import json_object, make_folder
from mmjax.hub.aside import KEPT
from mmjax.trust import check_names, check_paths

CONFIG = "config.json"
INSIDE = "$WORKDIR"  # the workdir's own path, perhaps after the kind of a source: mmjax:$WORKDIR
KIND = r"(?P<kind>(?:mmjax|hf|openflamingo|file):)?"
_NAMED = re.compile(KIND + re.escape(INSIDE) + r"(?P<rest>(?:/.*)?)")
_ABSOLUTE = re.compile(KIND + r"(?P<path>/[^\n\0]*)")


def to_portable(raw: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """A config as a workdir keeps it: absolute paths into it begin with INSIDE, 'file:' templates are text.

    Raises:
      UserError: a template's file cannot be read.
    """
    root = os.path.realpath(workdir)

    def portable(key: str, value: str) -> str:
        if key == "template" and value.startswith("file:"):
            return f"jinja:{open_template(value)}"
        found = _ABSOLUTE.fullmatch(value)
        path = os.path.realpath(found["path"]) if found else ""
        if path != root and not path.startswith(root + os.sep):
            return value
        return (found["kind"] or "") + INSIDE + path.removeprefix(root)

    return _map_strings(portable, json.loads(json.dumps(dict(raw))))


def from_portable(raw: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """The config of a workdir with its paths as they are today."""
    root = os.path.abspath(workdir)

    def today(_: str, value: str) -> str:
        found = _NAMED.fullmatch(value)
        return (found["kind"] or "") + root + found["rest"] if found else value

    return _map_strings(today, raw)


def _map_strings(function: Callable[[str, str], str], value: Any, key: str = "") -> Any:
    """Applies function(key, string) to every string of a JSON value; the key is that of the mapping around it."""
    if isinstance(value, Mapping):
        return {k: _map_strings(function, inner, k) for k, inner in value.items()}
    if isinstance(value, list):
        return [_map_strings(function, inner, key) for inner in value]
    return function(key, value) if isinstance(value, str) else value


def save_config(raw: Mapping[str, Any], workdir: Path) -> None:
    """Writes config.json, unless it says the same already."""
    file, text = workdir / CONFIG, json.dumps(to_portable(raw, workdir), indent=1)
    if file.exists() and file.read_text() == text:
        return
    make_folder(workdir)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def read_raw(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a workdir as a dict, with its paths as they are today.

    Raises:
      MissingFile: no run there. UserError: its config.json is damaged.
    """
    file = Path(workdir) / CONFIG
    if not file.is_file():
        raise MissingFile(f"{file}: no run there; `mmjax train --config ... --workdir {workdir}` makes one.")
    return from_portable(json_object(file), Path(workdir))


def load_config(workdir: Path, trust: Sequence[str] = ()) -> Config:
    """The config of a workdir, whose parts are of mmjax alone, or of the packages `trust` (trust.py).

    Raises:
      MissingFile: no run there.
      UserError: the config is damaged, has wrong keys, or names a part that is not to be trusted, or a
        tokenizer or template that is not in the workdir.
    """
    raw = read_raw(workdir)
    check_names(raw, trust, str(Path(workdir) / CONFIG))
    check_paths(raw, workdir)
    return read_config(raw)


def tokenizer_path(spec: Mapping[str, Any]) -> Path:
    """The file that a `tokenizer` section names. Raises UserError if it names none."""
    path = spec.get("path")
    if not isinstance(path, str) or "\0" in path or Path(path).name in ("", "..", CONFIG):
        raise UserError(f"tokenizer.path: {path!r} is no path of a tokenizer's file.")
    return Path(path)


def open_tokenizer(spec: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer` section, from the file at `path`.

    Raises:
      MissingFile: it is not there.
    """
    if not path.is_file():
        remedy = "`mmjax prepare --config ...` makes it." if "train" in spec else "Name the place where it is."
        raise MissingFile(f"tokenizer.path: there is no {path}. {remedy}")
    return build({key: value for key, value in spec.items() if key != "train"} | {"path": str(path)}, "tokenizer")


def kept_tokenizer(spec: Mapping[str, Any], workdir: Path) -> Path:
    """Where a workdir has its tokenizer: what a model was trained with stays."""
    path = tokenizer_path(spec)
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(workdir))
    return path if inside else Path(workdir) / path.name


def keep_tokenizer(spec: Mapping[str, Any], workdir: Path) -> Tokenizer:
    """Opens the workdir's own copy of the tokenizer, made on first use.

    Raises:
      MissingFile: neither a copy nor the tokenizer itself.
    """
    kept = kept_tokenizer(spec, workdir)
    if not kept.exists():
        copy_tokenizer(spec, workdir)
    return open_tokenizer(spec, kept if kept.exists() else tokenizer_path(spec))


def copy_tokenizer(spec: Mapping[str, Any], workdir: Path) -> None:
    """Copies the tokenizer into the workdir, if it can be found and is not there as it is."""
    path, kept = tokenizer_path(spec), kept_tokenizer(spec, workdir)
    if path.is_file() and not (kept.exists() and filecmp.cmp(path, kept, shallow=False)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        shutil.copyfile(path, partial)
        partial.replace(kept)


def copy_origin(config: Config, workdir: Path) -> None:
    """Copies what an export requires of the converted workdir that all weights are loaded from: its hub files."""
    for part, source in config.load:
        kind, _, path = source.partition(":")
        kept = Path(path).expanduser() / KEPT
        if part == "" and kind == "mmjax" and kept.is_dir() and not (workdir / KEPT).exists():
            partial = workdir / f"{KEPT}.{os.getpid()}.partial"
            shutil.copytree(kept, partial)
            partial.replace(workdir / KEPT)


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
            _lock(folder, workdir)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, workdir: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"--workdir {workdir}: another process is training there.") from error
    except OSError:  # a file system without locks
        logging.warning("%s cannot be locked: see to it that no other process trains there.", workdir)
