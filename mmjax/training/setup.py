"""A stage before any number of it exists: its state and batch as shapes on the mesh, and its programs.

Training, resuming, exporting and planning start from here, so that what is planned is what runs. Whatever is wrong
with a stage (a rule that finds nothing, a loss that its batch cannot serve, parts that do not fit) is found out by
making its setup: no computation runs, and no file is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import tree
from mmjax.config import Config, Stage
from mmjax.data.rows import empty_row
from mmjax.data.spec import DataSpec
from mmjax.errors import UserError
from mmjax.model import MultimodalLM
from mmjax.nn.linear import add_lora
from mmjax.sharding import batch_sharding, shard_tree
from mmjax.training.optimizer import make_optimizer
from mmjax.training.state import TrainState, make_state
from mmjax.training.step import make_evaluation, make_step
from mmjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Setup:
    """One stage, abstractly.

    shapes: of all parameters; trainable: of those that it trains. state, batch: jax.ShapeDtypeStructs with their
    shardings, the batch a global one. schedule: updates done -> learning rate of the next.
    begin: parameters (donated) -> TrainState. step: (state, donated, and batch) -> (state, metrics).
    measure: (parameters, batch) -> sums of the losses.
    """

    stage: Stage
    mesh: jax.sharding.Mesh
    shapes: dict[str, Any]
    trainable: dict[str, Any]
    state: TrainState
    batch: Batch
    schedule: optax.Schedule
    begin: Callable[[Any], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    measure: Callable[[Any, Batch], dict[str, tuple[jax.Array, jax.Array]]]

    def trace(self) -> None:
        """Traces the programs, which takes seconds for layers that are not scanned; a run that follows reuses it.
        Raises UserError for a loss that its batch cannot serve, or parts that do not fit."""
        jax.eval_shape(self.step, self.state, self.batch)
        if valid := self.stage.valid:
            jax.eval_shape(self.measure, self.shapes, abstract_batch(valid.data, self.stage, self.mesh))


def make_setup(config: Config, stage: Stage, model: MultimodalLM, mesh: jax.sharding.Mesh) -> Setup:
    """The setup of a stage; call it under `jax.set_mesh(mesh)`.

    Raises:
      UserError: the stage cannot be trained so; names the key and the remedy.
    """
    for data, where in stage.data_specs:
        _check_data(data, model, where)
    shapes = parameter_shapes(config, model, stage)
    trainable, _ = tree.partition(shapes, tree.select(stage.trainable, shapes, f"{stage.name}.trainable"))
    optimizer, schedule = make_optimizer(stage.optimizer, stage.steps, trainable, f"{stage.name}.optimizer")

    def begin(params: Any) -> TrainState:
        dtype, key = jnp.dtype(config.precision.frozen_dtype), jax.random.key(config.seed)
        return make_state(params, stage.trainable, optimizer, key, frozen_dtype=dtype, ema=stage.ema > 0)

    state = jax.eval_shape(begin, shapes)
    shardings = shard_tree(state, mesh)
    state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)
    losses = f"{stage.name}.losses"
    step = make_step(model, stage.losses, optimizer, accumulate=stage.accumulate, ema=stage.ema, where=losses)
    return Setup(
        stage=stage,
        mesh=mesh,
        shapes=shapes,
        trainable=trainable,
        state=state,
        batch=abstract_batch(stage.data, stage, mesh),
        schedule=schedule,
        begin=jax.jit(begin, out_shardings=shardings, donate_argnums=0),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        measure=jax.jit(make_evaluation(model, stage.losses, losses)),
    )


def abstract_batch(data: DataSpec, stage: Stage, mesh: jax.sharding.Mesh) -> Batch:
    """The shapes of a global batch of a stage's rows, spread over the mesh.

    Raises:
      UserError: the rows cannot be spread evenly.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if stage.batch % (devices * stage.accumulate):
        raise UserError(
            f"{stage.name}.batch: {stage.batch} rows cannot be split over data x fsdp = {devices} devices "
            f"in accumulate = {stage.accumulate} parts; give a multiple of {devices * stage.accumulate}."
        )
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((stage.batch, *x.shape), x.dtype, sharding=sharding), empty_row(data)
    )


def parameter_shapes(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    """Shapes of all parameters in a stage, the adapters of this and earlier stages included."""
    return jax.eval_shape(lambda: initialise(config, model, stage))


def initialise(config: Config, model: MultimodalLM, stage: Stage) -> dict[str, Any]:
    """All parameters of a stage from scratch, the adapters of this and earlier stages included."""
    params = model.init(jax.random.key(config.seed))
    for index, each in enumerate(config.stages[: config.stages.index(stage) + 1]):
        rng = jax.random.fold_in(jax.random.key(config.seed), index)
        params = add_lora(params, each.lora, rng, f"{each.name}.lora")
    return params


def _check_data(data: DataSpec, model: MultimodalLM, where: str) -> None:
    """Raises UserError where rows and model do not fit together."""
    media, limit = data.media, model.backbone.max_positions
    if limit and data.length > limit:
        raise UserError(f"{where}.length: {data.length} tokens; model.backbone.max_positions is {limit}.")
    if others := set(model.encoders) - {"image"}:
        raise UserError(f"model.encoders: {sorted(others)}: data has media of the kind 'image' alone; name it so.")
    if not model.encoders and media.slots:
        raise UserError(f"{where}.media.slots: {media.slots}, but the model has no encoder; set it to 0.")
    if not media.slots:
        if not model.splices:
            raise UserError(
                f"{where}.media.slots: is 0, and cross-attention requires 1; a row may leave it empty."
            )
        return
    wanted, given = model.encoders["image"].medium_shape(), media.make_views().empty(1)
    if isinstance(wanted, dict) != isinstance(given, dict):
        kind = "patches (data.patches)" if isinstance(wanted, dict) else "whole pictures or tiles (data.views)"
        raise UserError(f"{where}.media.views: model.encoders.image reads {kind}; name such views.")
    if not isinstance(wanted, dict) and given.shape[1:] != wanted:
        shown, right = (" x ".join(map(str, shape)) for shape in (given.shape[1:], wanted))
        raise UserError(f"{where}.media.size: {media.size} gives {shown}; model.encoders.image reads {right}.")
    if isinstance(wanted, dict) and given["patches"].shape[2:] != wanted["patches"][1:]:
        shown, right = given["patches"].shape[2], wanted["patches"][1]
        raise UserError(f"{where}.media.views: patches of {shown} numbers; model.encoders.image reads {right}.")
