"""A Hugging Face checkpoint folder: its config, its family, and its tensors under that family's names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import json_object
from mmjax.hub.family import Family, find_family, section_of
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, Spec, Tensors

KEPT_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")


class Renamed:
    """Tensors under other names: those that `transformers` saves today."""

    def __init__(self, tensors: Tensors, renames: tuple[tuple[str, str], ...]):
        self._tensors, self._names = tensors, {}
        for name in tensors.specs:
            new = name
            for pattern, replacement in renames:
                new = re.sub(pattern, replacement, new)
            self._names[new] = name
        self.specs: Mapping[str, Spec] = {new: tensors.specs[old] for new, old in self._names.items()}

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        return self._tensors.read(self._names[name], index)


class HubFolder:
    """path: the folder. config: its config.json. family: that config's. spec: the model section, or its part."""

    def __init__(self, path: str | os.PathLike[str]):
        """
        Raises:
          CheckpointError: no folder, no config.json, a family not known here, or tensors that cannot be read.
        """
        self.path = Path(path)
        self.config = read_json(self.path / "config.json")
        self.family: Family = find_family(self.config, str(self.path / "config.json"))
        self.spec = section_of(self.family, self.config, str(self.path / "config.json"))
        self.tensors = Renamed(SafetensorsFolder(self.path), self.family.renames)

    def keep(self, folder: Path) -> None:
        """Copies what lies beside the weights: config, tokenizer, templates."""
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in KEPT_FILES:
            for file in self.path.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, folder / file.name)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError, naming the file, if there is none."""
    try:
        return json_object(file)
    except UserError as error:
        raise CheckpointError(str(error)) from error
