"""Bad records: named, counted and capped; never silently lost, never fatal one by one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError

LINE = 1000  # characters of a bad record that are kept
_LOCK = threading.Lock()  # one a process; between processes a line is one append, and the file is the count


class BadRecord(UserError):
    """A record that cannot be used: `id` names it, `reason` says why, `line` is where it stood or what it said."""

    def __init__(self, id: str, reason: str, line: str = ""):
        super().__init__(f"{id}: {reason}")
        self.id, self.reason, self.line = id, reason, line

    def __reduce__(self):
        return type(self), (self.id, self.reason, self.line)


class TooManyBadRecords(UserError):
    """More of a source was refused than `max_refused` allows."""


class Quarantine:
    """Writes one JSON line a refused record: {source, id, reason, line}.

    A record counts once however often it is met. The file is shared by all worker processes and is kept over
    restarts; only lines written since this object was made are counted.
    """

    def __init__(self, path: str | os.PathLike[str], sizes: Mapping[str, int], max_refused: float):
        """
        Args:
          path: the log, on a local disk; its folder is made.
          sizes: number of records of each source.
          max_refused: the share (0..1) of a source's records that may be refused.
        """
        self.path = os.fspath(path)
        self.sizes = dict(sizes)
        self.max_refused = max_refused
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "ab") as log:
            self._read = log.tell()  # everything before belongs to earlier runs
        self._seen: dict[str, set[str]] = {name: set() for name in self.sizes}

    def add(self, source: str, error: BadRecord) -> None:
        """Notes a refused record.

        Raises:
          TooManyBadRecords: the source has now lost more than its share.
        """
        with _LOCK:
            self._catch_up()
            if error.id not in self._seen[source]:
                entry = dict(source=source, id=error.id, reason=error.reason, line=error.line[:LINE])
                with open(self.path, "ab") as log:
                    log.write(json.dumps(entry).encode() + b"\n")
                self._catch_up()
            refused = len(self._seen[source])
        if refused > self.max_refused * self.sizes[source]:
            raise TooManyBadRecords(
                f"Source {source!r}: {refused} of {self.sizes[source]} records are refused, more than "
                f"max_refused={self.max_refused:g} allows. The last is {error.id}: {error.reason}. "
                f"All are listed in {self.path}."
            ) from error

    def counts(self) -> dict[str, int]:
        """Number of refused records of each source so far, over all processes that write this file."""
        with _LOCK:
            self._catch_up()
        return {name: len(ids) for name, ids in self._seen.items()}

    def _catch_up(self) -> None:
        """Reads what this and other processes have added since the last look."""
        with open(self.path, "rb") as log:
            log.seek(self._read)
            lines: list[bytes] = log.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # another process is writing it just now
            self._read += len(line)
            entry: dict[str, Any] = json.loads(line)
            self._seen.setdefault(entry["source"], set()).add(entry["id"])
