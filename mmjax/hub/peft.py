"""LoRA adapters as a folder that `peft` loads: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import tree
from mmjax.hub.family import Family, Json
from mmjax.hub.table import T, moves
from mmjax.hub.tensors import CheckpointError, SafetensorsWriter, Spec


def write_adapter(folder: Path, family: Family, spec: Json, params: tree.Tree, base: str) -> int:
    """Writes the adapters among a model's parameters -> how many modules they change.

    Args:
      spec: the family's part of our model section. params: that part's parameters, adapters beside their kernels.
      base: name or path of the checkpoint that they belong to.

    Raises:
      CheckpointError: there is no adapter, or one of a kernel that the checkpoint holds fused with others.
    """
    flat = tree.flatten(params)
    kernels = {p: leaf for p, leaf in flat.items() if p.endswith("kernel") and _beside(p, "a") in flat}
    if not kernels:
        raise CheckpointError("there are no LoRA adapters; train a stage with `lora` rules, or export the model.")
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for move in moves(family.rows(spec), tree.unflatten(flat)):
        if not (adapted := [path for path in move.ours if path in kernels]):
            continue
        if move.op is not T:
            raise CheckpointError(f"{adapted[0]}: {move.theirs[0]} holds it fused, which PEFT cannot. Merge it.")
        module = family.module(move.theirs[0]).removesuffix(".weight")
        a, b, scale = (np.asarray(flat[_beside(move.ours[0], name)]) for name in ("a", "b", "scale"))
        a, b, scale = (x if move.index is None else x[move.index] for x in (a, b, scale))
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.T
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.T
        ranks[module], alphas[module] = a.shape[1], float(scale) * a.shape[1]
    specs = {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}
    with SafetensorsWriter(folder, specs) as writer:
        for name, array in tensors.items():
            writer.put(name, array)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = _config(family, ranks, alphas, base)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return len(ranks)


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
