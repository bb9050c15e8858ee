"""What a workdir keeps of what it was made from: its tokenizer, and the files that came with a checkpoint."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.build import build
from mmjax.config import TOKENIZERS, Config
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import MissingFile, UserError
from mmjax.files import make_folder, writing
from mmjax.hub.aside import KEPT

CONFIG = "config.json"


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
    given = {key: value for key, value in spec.items() if key != "train"} | {"path": str(path)}
    return build(given, "tokenizer", room=TOKENIZERS)


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
        make_folder(kept.parent)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        with writing(kept):
            try:
                shutil.copyfile(path, partial)
                partial.replace(kept)
            finally:
                partial.unlink(missing_ok=True)


def copy_origin(config: Config, workdir: Path) -> None:
    """Copies what an export requires of the converted workdir that all weights are loaded from: its hub files."""
    for part, source in config.load:
        kind, _, path = source.partition(":")
        kept = Path(path).expanduser() / KEPT
        if part == "" and kind == "mmjax" and kept.is_dir() and not (workdir / KEPT).exists():
            partial = workdir / f"{KEPT}.{os.getpid()}.partial"
            with writing(workdir / KEPT):
                try:
                    shutil.copytree(kept, partial)
                    partial.replace(workdir / KEPT)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
