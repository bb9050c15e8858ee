"""The seal of a checkpoint: `manifest.json` with the size and SHA-256 of every file, written last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# What reading a damaged step raises; KeyError is Orbax's "no handler could read this".
UNREADABLE = (OSError, ValueError, KeyError, RecursionError)


def _files(path: epath.Path) -> Iterator[epath.Path]:
    for entry in sorted(path.iterdir()):
        yield from _files(entry) if entry.is_dir() else [entry]


def seal(path: epath.Path) -> None:
    """Writes a committed step's manifest: {file: [bytes, SHA-256]}; by a rename, so whole or not there."""
    seals = {str(file.relative_to(path)): [file.stat().length, _sha256(file)] for file in _files(path)}
    writing = path / f"{MANIFEST}.writing"
    writing.write_text(json.dumps(seals, indent=1))
    writing.rename(path / MANIFEST)


def find_fault(path: epath.Path, parts: Collection[str] | None) -> str:
    """What is wrong with a step, '' if nothing: in the files of these parts (None: all) and beside the parts."""
    name = MANIFEST
    try:
        if not (path / name).exists():
            return _unsealed_fault(path)
        seals = json.loads((path / name).read_text())
        if not _is_manifest(seals):
            return f"{MANIFEST} does not give the bytes and the SHA-256 of each file"
        for name, (length, digest) in seals.items():
            part, _, below = name.partition("/")
            if below and parts is not None and part not in parts:
                continue
            if not (path / name).exists():
                return f"{name} is missing"
            if (path / name).stat().length != length:
                return f"{name} has {(path / name).stat().length} bytes where {length} were written"
            if _sha256(path / name) != digest:
                return f"{name} is not what was written: its SHA-256 differs"
    except UNREADABLE as error:
        return f"{name} cannot be read ({error})"
    return ""


def _is_manifest(seals: Any) -> bool:
    return isinstance(seals, dict) and all(
        isinstance(one, list) and [type(part) for part in one] == [int, str] for one in seals.values()
    )


def _unsealed_fault(path: epath.Path) -> str:
    """What can be told without a manifest: Orbax writes its metadata last, so where it stands all does."""
    try:
        found = ocp.checkpointables_metadata(path)
    except UNREADABLE as error:
        return f"it is no checkpoint ({error})"
    if "data" not in (found.custom_metadata or {}):
        return "its metadata is missing, so it was not written to the end"
    unreadable = [name for name, part in found.metadata.items() if part is None]  # Orbax only logs why
    if unreadable:
        return f"{', '.join(unreadable)} cannot be read"
    log.warning("%s: its checksums are not written (yet, or for a kill just then); not verified.", path)
    return ""


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
