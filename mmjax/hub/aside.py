"""Tensors of a checkpoint that no parameter stands for: an import keeps them, an export puts them back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.hub.family import Family
from mmjax.hub.folder import HubFolder, read_json
from mmjax.hub.tensors import SafetensorsFolder, SafetensorsWriter, Spec, Tensors, shown

KEPT = "hub"  # where a converted workdir keeps the files that came with the weights
ASIDE = "aside"  # and in there, such tensors


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a model, or a part of it, was made from. config: its config.json, {} if there was none.
    tensors: those that it had, or that were kept aside of it."""

    config: Mapping[str, Any]
    tensors: Tensors | None = None

    def aside(self, family: Family, used: Collection[str]) -> dict[str, Spec]:
        """Those of the tensors that are kept aside, less the ones `used`."""
        return {} if self.tensors is None else aside(family, used, self.tensors.specs)


def aside(family: Family, used: Collection[str], specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The tensors of a checkpoint of that family that are not `used`, and yet are to be kept."""
    wanted = re.compile("|".join(family.aside) or r"\b\B")
    return {name: spec for name, spec in specs.items() if name not in used and wanted.search(name)}


def keep(tensors: Tensors, specs: Mapping[str, Spec], workdir: Path) -> None:
    """Writes these tensors, one at a time, to where `find_origin` looks for them."""
    with SafetensorsWriter(workdir / KEPT / ASIDE, specs) as writer:
        for name in specs:
            writer.put(name, tensors.read(name))


def listed(names: Iterable[str]) -> str:
    """Names in one line, the layers of a stack as one."""
    return shown(list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)))


def find_origin(load: Sequence[tuple[str, str]], workdir: Path, family: Family) -> Origin:
    """What the model of a workdir was made from, or the part of it that `family` writes. load: of its config."""
    kept = workdir / KEPT
    if (kept / "config.json").exists():
        came = read_json(kept / "config.json")
        if came.get("model_type") == family.model_type:
            return Origin(came, SafetensorsFolder(kept / ASIDE) if (kept / ASIDE).exists() else None)
    for part, source in load:
        kind, _, path = source.partition(":")
        if part == family.part and kind == "hf" and Path(path).expanduser().is_dir():
            folder = HubFolder(Path(path).expanduser())
            if folder.family.model_type == family.model_type:
                return Origin(folder.config, folder.tensors)
    return Origin({})
