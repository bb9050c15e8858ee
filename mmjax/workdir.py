"""What a workdir holds beside its stages' folders: the config that it was made with, and its tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.build import build
from mmjax.config import Config, read_config
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import MissingFile, UserError


def save_config(raw: Mapping[str, Any], workdir: Path) -> None:
    """Writes config.json; a workdir goes on only with the model that it began with.

    Raises:
      UserError: the workdir holds a run of another model.
    """
    file = workdir / "config.json"
    raw = json.loads(json.dumps(dict(raw)))
    if file.exists():
        before = json.loads(file.read_text())
        for key in ("model", "tokenizer"):
            if before[key] != raw[key]:
                raise UserError(
                    f"{workdir}: was made with another {key} section than this config's; choose another --workdir."
                )
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(raw, indent=1))
    temporary.replace(file)


def load_config(workdir: Path) -> Config:
    """The config of a workdir.

    Raises:
      MissingFile: no run there.
    """
    file = Path(workdir) / "config.json"
    if not file.exists():
        raise MissingFile(f"{file}: no run there; `mmjax train --config ... --workdir {workdir}` makes one.")
    return read_config(json.loads(file.read_text()))


def keep_tokenizer(spec: Mapping[str, Any], workdir: Path) -> Tokenizer:
    """Opens the workdir's own copy of the tokenizer, made on first use: what a model was trained with stays.

    Raises:
      MissingFile: neither a copy nor the tokenizer itself.
    """
    spec = {key: value for key, value in spec.items() if key != "train"}
    kept = Path(workdir) / Path(spec["path"]).name
    if not kept.exists():
        if not Path(spec["path"]).exists():
            raise MissingFile(f"tokenizer: no {spec['path']}; `mmjax prepare --config ...` makes it.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        shutil.copyfile(spec["path"], partial)
        partial.replace(kept)
    return build(spec | {"path": str(kept)}, "tokenizer")
