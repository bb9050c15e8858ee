"""What a workdir holds beside its stages' folders: the config that it was made with, and its tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.build import build
from mmjax.config import Config, read_config
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import MissingFile, UserError
from mmjax.files import json_object, make_folder
from mmjax.trust import check_names, check_paths


def save_config(raw: Mapping[str, Any], workdir: Path) -> None:
    """Writes config.json; a workdir goes on only with the model that it began with.

    Raises:
      UserError: the workdir holds a run of another model.
    """
    file = workdir / "config.json"
    raw = json.loads(json.dumps(dict(raw)))
    if file.exists():
        before = json_object(file)
        for key in ("model", "tokenizer"):
            if before.get(key) != raw[key]:
                raise UserError(
                    f"{workdir}: was made with another {key} section than this config's; choose another --workdir."
                )
    make_folder(workdir)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(raw, indent=1))
    temporary.replace(file)


def load_config(workdir: Path, trust: Sequence[str] = ()) -> Config:
    """The config of a workdir, whose parts are of mmjax alone, or of the packages `trust` (trust.py).

    Raises:
      MissingFile: no run there.
      UserError: the config is damaged, has wrong keys, or names a part that is not to be trusted, or a
        tokenizer or template that is not in the workdir.
    """
    raw = read_raw(workdir)
    check_names(raw, trust, str(Path(workdir) / "config.json"))
    check_paths(raw, workdir)
    return read_config(raw)


def read_raw(workdir: Path) -> dict[str, Any]:
    """What a workdir's config.json says, nothing checked. Raises as `load_config` does."""
    file = Path(workdir) / "config.json"
    if not file.exists():
        raise MissingFile(f"{file}: no run there; `mmjax train --config ... --workdir {workdir}` makes one.")
    return json_object(file)


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
