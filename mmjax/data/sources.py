"""Where samples come from: anything with a length that yields `Sample`s by index."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from mmjax.data import corpora
from mmjax.data.quarantine import BadRecord
from mmjax.errors import MissingFile, UserError
from mmjax.types import Sample, Turn

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Source(Protocol):
    """Random access to samples. `__getitem__` raises BadRecord for a record that cannot be used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_source(path: str, root: str = "", data_dir: str = "") -> Source:
    """Opens what a source's `path` names.

    Args:
      path: 'corpus:NAME/CONFIG/SPLIT' for a corpus that `mmjax prepare` has built in `data_dir`, or a `.json`
        or `.jsonl` file in LLaVA's format: {id, image: name or list of names, conversations: [{from, value}]}.
      root: the folder the picture names of a file are in; '' for the file's own folder.

    Raises:
      UserError: nothing can be read there; says what to do.
    """
    if path.startswith(corpora.PREFIX):
        return corpora.open_corpus(path, data_dir)
    if path.endswith((".json", ".jsonl")):
        return Conversations(path, root)
    raise UserError(f"path: {path!r} is neither 'corpus:NAME/CONFIG/SPLIT' nor a .json or .jsonl file.")


class Conversations:
    """LLaVA's conversation format in a `.json` list or in `.jsonl` lines, with a folder of pictures."""

    def __init__(self, path: str, root: str = ""):
        if not os.path.isfile(path):
            raise MissingFile(f"path: there is no file {path!r}.")
        self.path = path
        self.root = Path(root or os.path.dirname(path) or ".").resolve()
        if not self.root.is_dir():
            raise MissingFile(f"root: there is no folder {root!r}.")
        self._open()

    def _open(self) -> None:
        data = Path(self.path).read_bytes()
        if self.path.endswith(".jsonl"):
            # Lines stay bytes until they are asked for: parsed, a large file takes ten times its size.
            self._records = [(n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()]
            return
        try:
            records = json.loads(data)
        except ValueError as error:
            raise UserError(f"path: {self.path!r} is not valid JSON: {error}") from error
        if not isinstance(records, list):
            raise UserError(f"path: {self.path!r} holds no list of records.")
        self._records = list(enumerate(records, 1))

    def __getstate__(self):
        return {"path": self.path, "root": self.root}  # a worker process reads the file itself

    def __setstate__(self, state):
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        number, record = self._records[index]
        where = f"{os.path.basename(self.path)}:{number}"
        if isinstance(record, bytes):
            try:
                record = json.loads(record)
            except ValueError as error:  # UnicodeDecodeError among them
                raise BadRecord(where, f"is not valid JSON: {error}", _shown(record)) from error
        if not isinstance(record, dict):
            raise BadRecord(where, "is no JSON object", _shown(record))
        id = f"{where}:{record['id']}" if "id" in record else where
        try:
            turns = tuple(_turn(turn) for turn in _list_of(record, "conversations", dict))
            if isinstance(record.setdefault("image", []), str):
                record["image"] = [record["image"]]
            names = _list_of(record, "image", str)
            return Sample(id=id, turns=turns, images=tuple(confine(self.root, name) for name in names))
        except ValueError as error:
            raise BadRecord(id, str(error), _shown(record)) from error


def confine(root: Path, name: str) -> Path:
    """The file `name` inside the folder `root` (resolved).

    Raises:
      UserError: the name leaves the folder, by itself or through a link, or there is no such file.
    """
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise UserError(f"the picture's path {name!r} is absolute; it must be inside {root}")
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise UserError(f"the picture's path {name!r} leaves {root}")
        if not path.is_file():
            raise UserError(f"there is no picture {name!r} in {root}")
    except OSError as error:
        raise UserError(f"the picture's path {name!r} cannot be followed: {error.strerror}") from error
    return path


def _list_of(record: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise UserError(f"{key!r} must be a list of {kind.__name__}")
    return value


def _turn(turn: dict[str, Any]) -> Turn:
    role, text = turn.get("from"), turn.get("value")
    if role not in ROLES:
        raise UserError(f"unknown role {role!r} in 'from'; known: {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise UserError(f"the 'value' of a turn must be a text, not {text!r}")
    return Turn(ROLES[role], text)


def _shown(record: Any) -> str:
    text = record.decode(errors="replace") if isinstance(record, bytes) else json.dumps(record)
    return text
