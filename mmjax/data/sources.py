"""Where samples come from: anything with a length that yields `Sample`s by index."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from mmjax.data import corpora
from mmjax.data.records import read_record
from mmjax.errors import MissingFile, UserError
from mmjax.types import Sample

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)  # up to what divides a list
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)  # up to the next bracket


class Source(Protocol):
    """Random access to samples. `__getitem__` raises BadRecord for a record that cannot be used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_source(path: str, root: str = "", data_dir: str = "") -> Source:
    """Opens what a source's `path` names.

    Args:
      path: 'corpus:NAME/CONFIG/SPLIT' for a corpus that `mmjax prepare` has built in `data_dir`, or a `.json`
        or `.jsonl` file of conversations (docs/data.md).
      root: the folder the picture names of a file are in; '' for the file's own folder.

    Raises:
      UserError: nothing can be read there; says what to do.
    """
    if path.startswith(corpora.PREFIX):
        return corpora.open_corpus(path, data_dir)
    if path.lower().endswith((".json", ".jsonl")):
        return Conversations(path, root)
    unpack = ": unpack it" if path.lower().endswith((".gz", ".bz2", ".xz", ".zst", ".zip")) else ""
    raise UserError(f"path: {path!r} is neither 'corpus:NAME/CONFIG/SPLIT' nor a .json or .jsonl file{unpack}.")


class Conversations:
    """Records of conversations in a `.json` list or in `.jsonl` lines, with a folder of pictures."""

    def __init__(self, path: str, root: str = ""):
        """
        Raises:
          UserError: the file cannot be read, is not laid out as its name says, or holds no record.
        """
        if not os.path.isfile(path):
            raise MissingFile(f"path: there is no file {path!r}.")
        self.path = path
        self.root = Path(root or os.path.dirname(path) or ".").resolve()
        if not self.root.is_dir():
            raise MissingFile(f"root: there is no folder {root!r}.")
        self._open()
        if not self._records:
            raise UserError(f"path: {path!r} holds no record.")

    def _open(self) -> None:
        try:
            data = Path(self.path).read_bytes().removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise UserError(f"path: {self.path!r} cannot be read: {error.strerror}") from error
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"path: {self.path!r} is in UTF-16; save it in UTF-8.")
        # Records stay bytes until they are asked for: parsed, a large file takes ten times its size.
        lines = self.path.lower().endswith(".jsonl")
        records = data.splitlines() if lines else _elements(data, self.path)
        self._records = [(n, record) for n, record in enumerate(records, 1) if not lines or record.strip()]

    def __getstate__(self):
        return {"path": self.path, "root": self.root}  # a worker process reads the file itself

    def __setstate__(self, state):
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        number, record = self._records[index]
        return read_record(record, f"{os.path.basename(self.path)}:{number}", self.root)


def _elements(data: bytes, path: str) -> list[bytes]:
    """The elements of a JSON list, each as its text: what is wrong inside one is no matter of the others.

    Raises:
      UserError: the text is no list.
    """
    refused = f"path: {path!r} is not valid JSON"
    place = begin = len(data) - len(data.lstrip()) + 1
    if data[begin - 1 : begin] != b"[":
        raise UserError(f"path: {path!r} holds no list of records; if it holds one a line, name it .jsonl.")
    found, depth = [], 1
    while depth:
        place = (_BETWEEN if depth == 1 else _INSIDE).match(data, place).end()
        kind = data[place : place + 1]
        if kind in (b"", b'"'):
            raise UserError(f"{refused}: a {'string' if kind else 'bracket'} is not closed.")
        depth += (kind in b"[{") - (kind in b"]}")
        if not depth or (depth == 1 and kind == b","):
            found.append(data[begin:place].strip())
            begin = place + 1
        place += 1
    if data[place:].strip():
        raise UserError(f"{refused}: something follows the list of records.")
    return [] if found == [b""] else found
