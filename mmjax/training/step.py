"""One training step, for every system: gradients of the trainable part, a guarded update, the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import tree
from mmjax.config import find_losses
from mmjax.errors import UserError
from mmjax.model import MultimodalLM
from mmjax.objectives.forward import Forward
from mmjax.training.state import TrainState
from mmjax.types import Batch

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


def make_evaluation(
    model: MultimodalLM, losses: Mapping[str, Mapping[str, Any]], where: str = "losses"
) -> Callable[[tree.Tree, Batch], Sums]:
    """The function (params, batch) -> {name: (sum, weight)} of the same losses, which `make_step` minimises."""
    objectives = find_losses(losses, where)

    def evaluate(params: tree.Tree, batch: Batch) -> Sums:
        forward, sums = Forward(model, params), {}
        for name, (objective, _) in objectives.items():
            found = _named(name, objective(forward, batch))
            if twice := sums.keys() & found.keys():
                raise UserError(f"{where}: two of them report {', '.join(sorted(twice))}; give one another name.")
            sums |= found
        return sums

    return evaluate


def _named(name: str, found: Sums) -> Sums:
    """What an objective has found, under the name that its config gives it: the first entry is the loss itself;
    the others keep their names where the loss has its own, else they have that name before them."""
    first, *others = found
    return {name: found[first]} | {key if name == first else f"{name}_{key}": found[key] for key in others}


def make_step(
    model: MultimodalLM,
    losses: Mapping[str, Mapping[str, Any]],
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int,
    ema: float,
    where: str = "losses",
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch) -> (state, metrics); jit it with the state donated.

    Args:
      losses: see `find_losses`; the sum of the weighted means is minimised.
      accumulate: the batch is taken in so many parts, one after the other, with the same result.
      ema: decay of the running mean of the parameters, 0 for none.
      where: the path of the losses in the config, for messages.
    """
    scales = {name: weight for name, (_, weight) in find_losses(losses, where).items()}
    gradients = _make_gradients(make_evaluation(model, losses, where), scales, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, sums = gradients(state, batch)
        means = {name: s / jnp.maximum(w, 1e-8) for name, (s, w) in sums.items()}
        loss = sum(scale * means[name] for name, scale in scales.items())
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, state.ema, params) if ema else {}

        def guard(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        state = state.replace(
            step=state.step + 1,
            params=guard(params, state.params),
            optimizer=guard(optimizer_state, state.optimizer),
            ema=guard(averaged, state.ema),
            skipped=state.skipped + ~finite,
        )
        real, slots = (batch.segments > 0).sum(), jnp.asarray(batch.segments.size)
        return state, means | {
            "loss": loss,
            "grad_norm": norm,
            "skipped": state.skipped,
            "tokens": real,
            "slots": slots,
        }

    return step


def _make_gradients(measure: Callable, scales: Mapping[str, float], accumulate: int) -> Callable:
    """The function (state, batch) -> (gradients of the trainable parameters, sums of the losses)."""

    def loss(params, frozen, part, weights):
        sums = measure(tree.merge(frozen, params), part)
        means = {n: s / jnp.maximum((weights or sums)[n][1], 1e-8) for n, (s, _) in sums.items()}
        return sum(scale * means[name] for name, scale in scales.items()), sums

    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return lambda state, batch: gradient(state.params, state.frozen, batch, None)

    def in_parts(state: TrainState, batch: Batch) -> tuple[Any, Sums]:
        parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
        # A loss is a mean over the whole batch, so its denominator must be known before the first part's
        # gradient. Weights depend on the batch alone: the compiler drops the forward pass from this line.
        weights = jax.lax.map(
            lambda part: {n: (0.0, w) for n, (_, w) in measure(state.all_params(), part).items()}, parts
        )
        weights = jax.tree.map(lambda w: w.sum(0), weights)

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, gradient(state.params, state.frozen, part, weights)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, state.params, state.frozen, first, weights)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add_part, zeros, parts)[0]

    return in_parts


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; each part takes rows of every device's share."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
