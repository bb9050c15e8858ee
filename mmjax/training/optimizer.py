"""AdamW from a config: schedule, clipping, and rules by path for learning-rate factors and weight decay.

One update of a parameter w with gradient g, in this order (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2):
    g  <- g * min(1, clip / |all trainable g|)
    m  <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    u  <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),   t = 1, 2, ...
    w  <- w - schedule(t - 1) * factor(w) * (u + weight_decay * decayed(w) * w)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from mmjax import tree
from mmjax.build import section
from mmjax.config import Optimizer


def make_optimizer(
    spec: Optimizer | Mapping[str, Any], total_steps: int, trainable: tree.Tree, where: str = "optimizer"
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a stage, for its trainable parameters alone.

    Args:
      total_steps: number of updates of the whole stage.
      trainable: nested dict of the trainable parameters, arrays or their `jax.ShapeDtypeStruct`s.
      where: the section's path in the config, for messages.

    Returns:
      The transformation, whose state has a leaf for each trainable parameter, and the schedule: number of
      updates done -> learning rate of the next, before factors.

    Raises:
      UserError: a path that no rule covers.
    """
    spec = section(Optimizer, spec, where)
    schedule = make_schedule(spec, total_steps)
    paths = list(tree.flatten(trainable))
    factors = tree.unflatten(tree.match(spec.lr_factors, paths, f"{where}.lr_factors"))
    decayed = tree.unflatten(tree.match(spec.decay, paths, f"{where}.decay"))
    transformation = optax.chain(
        optax.clip_by_global_norm(spec.clip) if spec.clip else optax.identity(),
        optax.scale_by_adam(spec.b1, spec.b2, spec.eps),
        optax.add_decayed_weights(spec.weight_decay, mask=decayed),
        # After the decay, so that a factor slows all that moves a parameter.
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors)),
        optax.scale_by_learning_rate(schedule),
    )
    return transformation, schedule


def make_schedule(spec: Optimizer, total_steps: int) -> optax.Schedule:
    """From 0 up to the peak in a straight line, then down, or level, to the end.

    Args:
      total_steps: the update after the last; its rate would be `lr * final`.
    """
    warmup = spec.warmup_updates(total_steps)
    rest = total_steps - warmup
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(spec.lr, rest, alpha=spec.final),
        "linear": lambda: optax.linear_schedule(spec.lr, spec.lr * spec.final, rest),
        "constant": lambda: optax.constant_schedule(spec.lr),
    }[spec.schedule]()
    return (
        optax.join_schedules([optax.linear_schedule(0.0, spec.lr, warmup), after], [warmup]) if warmup else after
    )
