"""Bad records: named, counted and capped; never silently lost, never fatal one by one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.errors import UserError
from mmjax.files import append_lines, make_folder, writing

LINE = 1000  # characters of a bad record, or of a reason, that are kept
_LOCK = threading.Lock()  # one a process; between processes a line is one append


class BadRecord(UserError):
    """A record that cannot be used: `id` names it, `reason` says why, `line` is where it stood or what it said."""

    def __init__(self, id: str, reason: str, line: str = ""):
        reason = reason[:LINE]
        super().__init__(f"{id}: {reason}")
        self.id, self.reason, self.line = id, reason, line

    def __reduce__(self):
        return type(self), (self.id, self.reason, self.line)


class TooManyBadRecords(UserError):
    """More of a source was refused than `max_refused` allows."""


class Quarantine:
    """Writes one JSON line a refused record: {stage, split, source, id, reason, line, measured}.

    A record counts once however often it is met, for its stage, split and source. All worker processes of a run
    write the file. What was refused while it was read for training is counted again after a restart; what was
    refused when it was measured is left out of the file, since a restart measures anew.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sizes: Mapping[str, int],
        max_refused: float,
        stage: str = "",
        split: str = "train",
    ):
        """
        Args:
          path: the log, on a local disk; its folder is made.
          sizes: number of records of each source.
          max_refused: the share (0..1) of a source's records that may be refused.
          stage, split: whose data this is; what others wrote is kept and not counted.

        Raises:
          UserError: the log cannot be made or written.
        """
        self.path = os.fspath(path)
        self.sizes = dict(sizes)
        self.max_refused = max_refused
        self.stage, self.split = stage, split
        self._seen: dict[str, set[str]] = {name: set() for name in self.sizes}
        self._file, self._read = 0, 0  # which file, and how many of its bytes are counted
        make_folder(Path(self.path).parent)
        with _LOCK, writing(self.path):
            self._tidy()
            self._catch_up()

    def add(self, source: str, error: BadRecord, measured: bool = False) -> None:
        """Notes a refused record; `measured` if every start of the run refuses it, before training.

        Raises:
          TooManyBadRecords: the source has now lost more than its share.
          UserError: the log cannot be written.
        """
        with _LOCK, writing(self.path):
            self._catch_up()
            if error.id not in self._seen[source]:
                self._seen[source].add(error.id)
                entry = dict(stage=self.stage, split=self.split, source=source, id=error.id, reason=error.reason)
                append_lines(self.path, [json.dumps(entry | dict(line=error.line[:LINE], measured=measured))])
            refused = len(self._seen[source])
        if refused > self.max_refused * self.sizes[source]:
            raise TooManyBadRecords(
                f"Source {source!r}: {refused} of {self.sizes[source]} records are refused, more than "
                f"max_refused={self.max_refused:g} allows. The last is {error.id}: {error.reason}. "
                f"All are listed in {self.path}; take out the lines of those that you have mended."
            ) from error

    def counts(self) -> dict[str, int]:
        """Number of refused records of each source, over all processes that write this file and all restarts."""
        with _LOCK, writing(self.path):
            self._catch_up()
        return {name: len(ids) for name, ids in self._seen.items()}

    def _tidy(self) -> None:
        """Rewrites the file without damaged lines and without what will be measured again."""
        if not os.path.exists(self.path):
            open(self.path, "ab").close()
            return
        with open(self.path, "rb") as log:
            lines = log.read().splitlines(keepends=True)
        entries = [(line, _entry(line)) for line in lines]
        kept = [line for line, entry in entries if entry and not (self._is_mine(entry) and entry.get("measured"))]
        if kept != lines:
            partial = f"{self.path}.{os.getpid()}"
            with open(partial, "wb") as log:
                log.writelines(kept)
            os.replace(partial, self.path)

    def _catch_up(self) -> None:
        """Counts what this and other processes have added since the last look."""
        with open(self.path, "rb") as log:
            file = os.fstat(log.fileno()).st_ino
            if file != self._file:  # another split's quarantine has tidied up: read it anew
                self._file, self._read = file, 0
            log.seek(self._read)
            lines: list[bytes] = log.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # another process is writing it just now
            self._read += len(line)
            entry = _entry(line)
            if entry and self._is_mine(entry) and entry["source"] in self._seen:
                self._seen[entry["source"]].add(entry["id"])

    def _is_mine(self, entry: Mapping[str, Any]) -> bool:
        return entry.get("stage") == self.stage and entry.get("split") == self.split


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line of the file says; None for a damaged one, as a killed process leaves it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    named = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("source", "id"))
    return entry if named and line.endswith(b"\n") else None
