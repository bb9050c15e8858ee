"""The parameters that a stage has trained, for the next stage, for inference and for export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import tree
from mmjax.config import Config, Stage
from mmjax.hub.load import specs_of
from mmjax.nn.linear import merge_lora
from mmjax.sharding import one_device, shard_tree
from mmjax.training.checkpoint import Checkpoints


def last_trained(config: Config, workdir: Path) -> Stage | None:
    """The last stage of a workdir that has a checkpoint."""
    for stage in reversed(config.stages):
        with Checkpoints(workdir / stage.name / "checkpoints", keep=config.keep) as checkpoints:
            if checkpoints.begun:
                return stage
    return None


def trained_parameters(
    checkpoints: Checkpoints, mesh: jax.sharding.Mesh | None = None, frozen_dtype: str | None = None
) -> dict[str, Any]:
    """The whole model's parameters at the newest step: averaged where the stage kept a running mean.

    mesh: what they are laid on, read straight onto its devices; None for this process's first device.
    frozen_dtype: of the frozen ones, as the stage's own steps saw them; None for the precision that they came in.
    """
    shapes, read = _open(checkpoints, frozen_dtype)
    places = shard_tree(shapes, mesh or one_device())
    return read(jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places))


class TrainedTensors:
    """The same parameters with the interface of Tensors, adapters merged or not, in memory while they are read.

    A leaf of stacked layers is read at the first of them that is asked for, and let go behind the last.
    """

    def __init__(self, checkpoints: Checkpoints, merged: bool):
        shapes, self._open = _open(checkpoints)
        self._shapes = tree.flatten(shapes)
        self._merged = merged
        self._held: dict[str, np.ndarray] = {}
        plain = {path: leaf for path, leaf in self._shapes.items() if not (merged and "/lora_" in path)}
        self.specs = specs_of(tree.unflatten(plain))

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        if index is None:
            return self._leaf(name)
        if name not in self._held:
            self._held[name] = self._leaf(name)
        last = index == len(self._held[name]) - 1
        return (self._held.pop(name) if last else self._held[name])[index]

    def _leaf(self, name: str) -> np.ndarray:
        beside = [name.removesuffix("kernel") + f"lora_{part}" for part in ("a", "b", "scale")]
        adapters = [path for path in beside if self._merged and path in self._shapes]
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {path: self._shapes[path].update(sharding=here) for path in (name, *adapters)}
        found = self._open(tree.unflatten(wanted))
        return np.asarray(tree.flatten(merge_lora(found) if adapters else found)[name])


def _open(
    checkpoints: Checkpoints, frozen_dtype: str | None = None
) -> tuple[dict[str, Any], Callable[[Any], dict[str, Any]]]:
    """Shapes of the whole model's parameters, and what reads those of them that it is given with shardings."""
    saved, read = checkpoints.open_params()
    if frozen_dtype and "frozen" in saved:
        saved["frozen"] = jax.tree.map(lambda leaf: leaf.update(dtype=np.dtype(frozen_dtype)), saved["frozen"])
    parts = [part for part in ("frozen", "ema" if saved.get("ema") else "trainable") if part in saved]
    part_of = {path: part for part in parts for path in tree.flatten(saved[part])}

    def read_of_model(wanted: Any) -> dict[str, Any]:
        by_part: dict[str, dict[str, Any]] = {}
        for path, leaf in tree.flatten(wanted).items():
            by_part.setdefault(part_of[path], {})[path] = leaf
        return tree.merge(*read({part: tree.unflatten(flat) for part, flat in by_part.items()}).values())

    return tree.merge(*(saved[part] for part in parts)), read_of_model
