"""LoRA adapters as a folder that `peft` loads: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import tree
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Move, T, moves, to_theirs
from mmjax.hub.tensors import CheckpointError, SafetensorsWriter, Spec, shown

_PREFIX = "base_model.model."  # of names of tensors


def write_adapter(
    folder: Path, family: Family, spec: Json, params: tree.Tree, base: str, trained: Collection[str] = ()
) -> int:
    """Writes the adapters among a model's parameters -> how many modules they change.

    Args:
      spec: the family's part of our model section. params: that part's parameters, adapters beside their kernels.
      base: name or path of the checkpoint that they belong to. trained: paths of parameters that were trained
        themselves; their modules are written whole, as `modules_to_save`.

    Raises:
      CheckpointError: there is no adapter, or one of a kernel that the checkpoint holds fused with others; or
        `trained` has parameters whose modules PEFT cannot hold beside the adapters.
    """
    flat = tree.flatten(params)
    kernels = {p: leaf for p, leaf in flat.items() if p.endswith("kernel") and _beside(p, "a") in flat}
    if not kernels:
        raise CheckpointError("there are no LoRA adapters; train a stage with `lora` rules, or export the model.")
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    plan = moves(family.rows(spec), tree.unflatten(flat))
    for move in plan:
        if not (adapted := [path for path in move.ours if path in kernels]):
            continue
        if move.op is not T:
            raise CheckpointError(f"{adapted[0]}: {move.theirs[0]} holds it fused, which PEFT cannot. Merge it.")
        module = family.module(move.theirs[0]).removesuffix(".weight")
        a, b, scale = (np.asarray(flat[_beside(move.ours[0], name)]) for name in ("a", "b", "scale"))
        a, b, scale = (x if move.index is None else x[move.index] for x in (a, b, scale))
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.T
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b.T
        ranks[module], alphas[module] = a.shape[1], float(scale) * a.shape[1]
    whole = _whole_modules(family, spec, plan, set(trained), ranks)
    for move in plan:
        held = [_inside(family.module(name), whole) for name in move.theirs]
        if any(held):
            found = to_theirs(move, _Held(flat))
            tensors |= {_PREFIX + family.module(name): x for (name, x), h in zip(found, held, strict=True) if h}
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    with SafetensorsWriter(folder, specs) as writer:
        for name, array in tensors.items():
            writer.put(name, array)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = _config(family, ranks, alphas, base) | dict(modules_to_save=whole or None)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return len(ranks)


class _Held:
    """Arrays in memory with the interface of Tensors."""

    def __init__(self, flat: Mapping[str, np.ndarray]):
        self._flat = flat
        self.specs = {name: Spec(tuple(leaf.shape), leaf.dtype) for name, leaf in flat.items()}

    def read(self, name: str, index: int | slice | None = None) -> np.ndarray:
        return np.asarray(self._flat[name] if index is None else self._flat[name][index])


def _whole_modules(
    family: Family, spec: Json, plan: Sequence[Move], trained: set[str], adapted: Collection[str]
) -> list[str]:
    """Names in memory of the modules, none within another, that hold the tensors of trained parameters.

    Raises:
      CheckpointError: a module has adapters in it, or is an embedding that is the head as well.
    """
    backbone, prefix = (spec, "") if family.part == "backbone" else (spec.get("backbone"), "backbone/")
    refused: dict[str, str] = {}
    if backbone and complete(backbone)["tied"] and f"{prefix}embedding" in trained:
        refused[f"{prefix}embedding"] = "is tied to the head"
    found = set()
    for move in plan:
        for path in trained.intersection(move.ours):
            for name in move.theirs:
                module = family.module(name).rpartition(".")[0]
                if not module or any(_inside(one, [module]) for one in adapted):
                    refused[path] = f"{family.module(name)} stands in a module with adapters"
                found.add(module)
    named = {path for move in plan for path in move.ours}
    refused |= dict.fromkeys(sorted(trained - named), f"{family.model_type} has no tensor for it")
    if refused:
        lines = [f"  {path}: {why}" for path, why in sorted(refused.items())]
        raise CheckpointError(
            "parameters that were trained in full, and that PEFT cannot hold beside the adapters; export the "
            "merged model, or freeze them (`trainable` of the stage):\n" + shown(lines, "\n")
        )
    return sorted(one for one in found if not _inside(one.rpartition(".")[0], found))


def _inside(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor or module is one of the modules, or lies in one."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts) + 1))


def _config(family: Family, ranks: Mapping[str, int], alphas: Mapping[str, float], base: str) -> dict[str, Any]:
    """adapter_config.json. Ranks and alphas are patterns where modules differ in them."""
    rank, alpha = max(ranks.values()), max(alphas.values())
    return dict(
        peft_type="LORA",
        task_type="CAUSAL_LM" if family.part == "backbone" else None,
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={module: r for module, r in ranks.items() if r != rank},
        alpha_pattern={module: a for module, a in alphas.items() if a != alpha},
        target_modules=sorted(ranks),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=False,
        inference_mode=True,
    )


def _beside(kernel: str, name: str) -> str:
    return f"{kernel.removesuffix('kernel')}lora_{name}"
