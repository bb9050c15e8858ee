"""A benchmark's answers as they come, on disk: what a stopped evaluation has been told, the next one takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import append_lines, json_lines, make_folder, write_text
from mmjax.types import Sample


class Answers:
    """Key -> answer, one JSON line each as it comes: {id, key, answer}. The first line says whose they are."""

    def __init__(self, file: Path | None, bound: Mapping[str, Any]):
        """
        Args:
          file: None to keep them in memory alone; else made if need be. One of something else is begun anew.
          bound: what the answers hang on besides the question: the checkpoint, the benchmark's options.

        Raises:
          UserError: the file cannot be read or written.
        """
        self._file, self._known = file, {}
        if file is None:
            return
        make_folder(file.parent)
        header, *lines = [*json_lines(file)] or [None]
        if header != bound:
            write_text(file, json.dumps(bound) + "\n")
            return
        told = [line for line in lines if isinstance(line.get("key"), str) and "answer" in line]
        self._known = {line["key"]: line["answer"] for line in told}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> Any:
        """The answer, None without."""
        return self._known.get(key)

    def add(self, answers: Iterable[tuple[str, str, Any]]) -> None:
        """Keeps (id of the question, key, answer as JSON). Raises UserError if they cannot be written."""
        answers = list(answers)
        self._known |= {key: answer for _, key, answer in answers}
        if self._file is not None:
            lines = [json.dumps(dict(id=id, key=key, answer=answer)) for id, key, answer in answers]
            append_lines(self._file, lines)


def key_of(prompt: Sample, how: Any) -> str:
    """What an answer is kept under: a digest of the question, its pictures, and how it is asked."""
    digest = hashlib.sha256()
    for part in (prompt.id, prompt.turns, dataclasses.asdict(how) if dataclasses.is_dataclass(how) else how):
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    for picture in prompt.images:
        digest.update(_content(picture) + b"\0")
    return digest.hexdigest()[:32]


def _content(picture: Any) -> bytes:
    """What tells a picture from others: of a file, its path, size and time."""
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        found = path.stat() if path.exists() else None
        return repr((str(path), found and (found.st_size, found.st_mtime_ns))).encode()
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()
    pixels = np.asarray(picture)
    return hashlib.sha256(repr((pixels.shape, str(pixels.dtype))).encode() + pixels.tobytes()).digest()
