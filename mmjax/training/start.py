"""The state that a stage starts with: from scratch, from checkpoints, from the stage before, or where it stood."""

from __future__ import annotations

from typing import Any

import jax

from mmjax import tree
from mmjax.config import Config, Stage
from mmjax.data.pipeline import Dataset
from mmjax.errors import UserError
from mmjax.hub.load import load_parts, plan_parts
from mmjax.model import MultimodalLM
from mmjax.sharding import shard_tree
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.setup import Setup, initialise
from mmjax.training.state import TrainState
from mmjax.training.trained import trained_parameters


def begin(setup: Setup, params: Any, checkpoints: Checkpoints) -> TrainState:
    """The state before the first step, of the whole model's parameters, which are used up. The frozen ones are
    saved, in the precision that they came in."""
    chosen = tree.select(setup.stage.trainable, params, f"{setup.stage.name}.trainable")
    checkpoints.begin(tree.partition(params, chosen)[1])
    return setup.begin(params)


def resume(setup: Setup, checkpoints: Checkpoints, data: Dataset) -> tuple[TrainState, int, float]:
    """(the newest whole state, its step, seconds spent until then).

    Raises:
      UserError: the data is not what the stage was trained on so far.
    """
    abstract = setup.state
    restored = checkpoints.restore(
        {
            "params": {"trainable": abstract.params, "ema": abstract.ema},
            "optimizer": abstract.optimizer,
            "rest": {"step": abstract.step, "skipped": abstract.skipped, "rng": abstract.rng},
        }
    )
    if not data.continues(restored.data["fingerprint"]):
        raise UserError(
            "The data is not what this stage was trained on so far (other records, answers, pictures, weights or "
            "seed): restore it, or begin in another --workdir."
        )
    params, rest = restored.state["params"], restored.state["rest"]
    state = TrainState(
        params=params["trainable"],
        frozen=checkpoints.restore_frozen(abstract.frozen),
        ema=params["ema"],
        optimizer=restored.state["optimizer"],
        **rest,
    )
    return state, restored.step, restored.data["seconds"]


def first_parameters(config: Config, model: MultimodalLM, setup: Setup) -> dict[str, Any]:
    """Of the first stage: what `load` names, the rest from scratch."""
    shapes = _without_adapters(setup, setup.shapes)  # which begin here
    found = load_parts(config.load, shapes, _without_adapters(setup, shard_tree(setup.shapes, setup.mesh)))
    return _with_missing(config, model, setup, found)


def check_load(config: Config, setup: Setup) -> None:
    """Raises UserError, as `load_parts` does, if the first stage cannot start from what `load` names. No number is
    read."""
    for _ in plan_parts(config.load, _without_adapters(setup, setup.shapes)):
        continue


def next_parameters(
    config: Config, model: MultimodalLM, setup: Setup, before: Stage, checkpoints: Checkpoints
) -> dict[str, Any]:
    """Of a later stage: what `before` ended with, and the adapters that this one adds.

    Raises:
      UserError: `before` is not done, or had other parameters.
    """
    stage, shapes = setup.stage, setup.shapes
    if checkpoints.latest() != before.steps or checkpoints.verify() != before.steps:
        raise UserError(f"Stage {stage.name!r} starts from {before.name!r}, which is not done; train that first.")
    params = trained_parameters(checkpoints, setup.mesh)
    if stage.lora:
        there = tree.flatten(params)
        old = {path: path in there or "/lora_" not in path for path in tree.flatten(shapes)}
        shapes = tree.partition(shapes, old)[0]
    if trouble := tree.explain_mismatch(shapes, params):
        raise UserError(f"Stage {stage.name!r} cannot start from {before.name!r}:\n{trouble}")
    found = jax.tree.map(lambda p, shape: p.astype(shape.dtype), params, shapes)
    return _with_missing(config, model, setup, found)


def _without_adapters(setup: Setup, tree_of_stage: Any) -> dict[str, Any]:
    """A tree of all parameters of a stage, without those of adapters."""
    return tree.partition(tree_of_stage, {path: "/lora_" not in path for path in tree.flatten(setup.shapes)})[0]


def _with_missing(config: Config, model: MultimodalLM, setup: Setup, found: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a stage: those found, and the others from scratch."""
    there, shardings = tree.flatten(found), shard_tree(setup.shapes, setup.mesh)
    # Only what is missing is computed: the compiler drops the rest.
    missing = {path: path not in there for path in tree.flatten(setup.shapes)}
    rest = jax.jit(
        lambda: tree.partition(initialise(config, model, setup.stage), missing)[0],
        out_shardings=tree.partition(shardings, missing)[0],
    )
    return tree.merge(rest(), found)
