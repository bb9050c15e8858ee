"""The config of a workdir: as it is kept, as it reads today, and as checked sections.

A workdir may be moved or copied: its `config.json` names what lies inside as `$WORKDIR/...`, and holds chat
templates as text. Other paths in it (data, checkpoints to load) are the user's own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.config import Config, check_parts, read_config
from mmjax.data.templates import open_template
from mmjax.errors import MissingFile, UserError
from mmjax.files import json_object, make_folder, write_text
from mmjax.workdir.kept import CONFIG
from mmjax.workdir.trust import check_names, check_paths

INSIDE = "$WORKDIR"  # the workdir's own path, perhaps after the kind of a source: mmjax:$WORKDIR
KIND = r"(?P<kind>(?:mmjax|hf|openflamingo|file):)?"
_NAMED = re.compile(KIND + re.escape(INSIDE) + r"(?P<rest>(?:/.*)?)")
_ABSOLUTE = re.compile(KIND + r"(?P<path>/[^\n\0]*)")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A config as the workdir at `workdir` keeps it: plain JSON in which paths into it begin with INSIDE."""

    raw: Mapping[str, Any]
    workdir: Path

    @classmethod
    def of(cls, raw: Mapping[str, Any], workdir: str | os.PathLike[str]) -> Saved:
        """Of a config that was given, with its paths as they are today.

        Raises:
          UserError: the file of a template cannot be read.
        """
        return cls(_to_portable(raw, Path(workdir)), Path(workdir))

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> Saved:
        """Of a workdir's config.json.

        Raises:
          MissingFile: no run there. UserError: its config.json is damaged.
        """
        file = Path(workdir) / CONFIG
        if not file.is_file():
            raise MissingFile(f"{file}: no run there; `mmjax train --config ... --workdir {workdir}` makes one.")
        return cls(json_object(file), Path(workdir))

    @functools.cached_property
    def today(self) -> dict[str, Any]:
        """The config with its paths as they are today."""
        return _from_portable(self.raw, self.workdir)

    @functools.cached_property
    def config(self) -> Config:
        """The config, checked. Raises UserError as `read_config` does."""
        return read_config(self.today)

    def write(self) -> None:
        """Writes config.json, unless it says the same already."""
        file, text = self.workdir / CONFIG, json.dumps(self.raw, indent=1)
        if not (file.exists() and file.read_text() == text):
            make_folder(self.workdir)
            write_text(file, text)


def read_raw(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a workdir as a dict, with its paths as they are today. Raises as Saved.read does."""
    return Saved.read(workdir).today


def load_config(workdir: str | os.PathLike[str], trust: Sequence[str] = ()) -> Config:
    """The config of a workdir, whose parts are of mmjax alone, or of the packages `trust` (trust.py).

    Raises:
      MissingFile: no run there.
      UserError: the config is damaged, has wrong keys, or names a part that is not to be trusted, or a
        tokenizer or template that is not in the workdir.
    """
    saved, file = Saved.read(workdir), Path(workdir) / CONFIG
    check_names(saved.today, trust, str(file))
    check_paths(saved.today, workdir)
    try:
        check_parts(saved.config)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from error
    return saved.config


def _to_portable(raw: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
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


def _from_portable(raw: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
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
