"""A Hugging Face checkpoint folder: its config, its family, and its tensors under that family's names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.files import json_object
from mmjax.hub import quantised
from mmjax.hub.family import Family, complete, find_family, section_of
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, Spec, Tensors

ADAPTER = "adapter_config.json"
KEPT_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "tokenizer.model", "*.txt")


class Renamed:
    """Tensors under other names: those of a family's table."""

    def __init__(self, tensors: Tensors, rename: Callable[[str], str]):
        """
        Raises:
          CheckpointError: two tensors get one name.
        """
        self._tensors, self._names = tensors, {}
        for name in tensors.specs:
            new = rename(name)
            if new in self._names:
                raise CheckpointError(f"the tensors {self._names[new]} and {name} both are {new}; remove one.")
            self._names[new] = name
        self.specs: dict[str, Spec] = {new: tensors.specs[old] for new, old in self._names.items()}

    def read(self, name: str, index: int | slice | None = None) -> np.ndarray:
        return self._tensors.read(self._names[name], index)

    def drop(self, name: str) -> None:
        """Leaves a tensor out."""
        del self._names[name], self.specs[name]

    def copy(self, name: str, new: str) -> None:
        """Gives a tensor a second name."""
        self._names[new], self.specs[new] = self._names[name], self.specs[name]


class HubFolder:
    """path: the folder. config: its config.json. family: that config's. spec: the model section, or its part."""

    def __init__(self, path: str | os.PathLike[str]):
        """
        Raises:
          CheckpointError: no folder, no config.json, a family not known here, an adapter that changes the weights,
            or tensors that cannot be read.
        """
        self.path = Path(path)
        if (self.path / ADAPTER).exists():
            base = read_json(self.path / ADAPTER).get("base_model_name_or_path")
            raise CheckpointError(
                f"{self.path / ADAPTER}: transformers would put this adapter onto {base}. Merge the two first "
                "(PEFT's merge_and_unload, then save_pretrained), or remove the file to convert without it."
            )
        if not (self.path / "config.json").exists():
            files = sorted(self.path.glob("*.gguf"))
            hint = f"; to convert {files[0].name}, give that file" if files else ""
            raise CheckpointError(f"{self.path}: has no config.json, and so is no model of transformers{hint}.")
        self.config = read_json(self.path / "config.json")
        quantised.check_config(self.config, self.path / "config.json")
        self.family: Family = find_family(self.config, str(self.path / "config.json"))
        self.spec = section_of(self.family, self.config, str(self.path / "config.json"))
        tensors = SafetensorsFolder(self.path, self.config.get("transformers_weights"))
        quantised.check_names(tensors.specs, self.path)
        self.tensors = Renamed(tensors, self.family.canonical)
        self._settle_head()

    def _settle_head(self) -> None:
        """Whether the head is the embedding table, where config.json says so, as `transformers` 5 settles it
        (modeling_utils.py, tie_weights): of two equal tables one is dropped, of two that differ both are kept, and
        either stands for the other where that is missing."""
        whole = self.family.part == ""
        if not (whole or self.family.part == "backbone"):
            return
        backbone, prefix = (self.spec["backbone"], "backbone/") if whole else (self.spec, "")
        if not complete(backbone)["tied"]:
            return
        names = {path: row.theirs for row in self.family.rows(self.spec) for path in row.ours}
        specs, pairs = self.tensors.specs, []
        for kind in ("", "additional_"):
            found = [names.get(f"{prefix}{kind}{path}", (None,))[0] for path in ("embedding", "head/kernel")]
            if any(name in specs for name in found):
                pairs.append(found)
        for table, head in pairs:
            if table not in specs:
                self.tensors.copy(head, table)
        differing = [pair for pair in pairs if pair[1] in specs and not self._equal(*pair)]
        for table, head in pairs:
            if differing and head not in specs:
                self.tensors.copy(table, head)
            if not differing and head in specs:
                self.tensors.drop(head)
                logging.info("%s: left out, it is tied to %s and the same: %s.", self.path, table, head)
        if differing:
            backbone["tied"] = False
            logging.warning(
                "%s: config.json says tie_word_embeddings, but %s is not %s: both are kept, as by transformers.",
                *(self.path, differing[0][1], differing[0][0]),
            )

    def _equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same numbers."""
        one, other = (self.tensors.specs[name] for name in (first, second))
        if one.shape != other.shape:
            return False
        step = 4096  # rows at a time, not a whole table
        parts = [slice(i, min(i + step, one.shape[0])) for i in range(0, one.shape[0], step)]
        return all(np.array_equal(*(self.tensors.read(name, part) for name in (first, second))) for part in parts)

    def keep(self, folder: Path) -> None:
        """Copies what lies beside the weights: config, tokenizer, templates."""
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in KEPT_FILES:
            for file in self.path.glob(pattern):
                if not file.name.endswith(".index.json"):
                    kept = folder / file.relative_to(self.path)
                    kept.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, kept)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError, naming the file, if there is none."""
    try:
        return json_object(file)
    except UserError as error:
        raise CheckpointError(str(error)) from error
