"""AdamW from a config: schedule, clipping, and rules by path for learning-rate factors and weight decay.

One update of a parameter w with gradient g, in this order (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2):
    g  <- g * min(1, clip / |all trainable g|)
    m  <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    u  <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),   t = 1, 2, ...
    w  <- w - schedule(t - 1) * factor(w) * (u + weight_decay * decayed(w) * w)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from mmjax import tree
from mmjax.build import suggest
from mmjax.errors import UserError

KEYS = (
    "type", "lr", "schedule", "warmup", "final", "b1", "b2", "eps", "weight_decay", "clip", "lr_factors", "decay",
)  # fmt: skip
SCHEDULES = ("cosine", "linear", "constant")


def make_optimizer(
    spec: Mapping[str, Any], total_steps: int, trainable: tree.Tree
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a stage, for its trainable parameters alone.

    Args:
      spec: `type='adamw'`; `lr`, the peak; `schedule`, `warmup` and `final` (see `make_schedule`); `b1`, `b2`,
        `eps`; `weight_decay`; `clip`, the largest global norm of the gradients, 0 for none;
        `lr_factors=[(regex, factor)]` and `decay=[(regex, bool)]`, each covering every path.
      total_steps: number of updates of the whole stage.
      trainable: nested dict of the trainable parameters, arrays or their `jax.ShapeDtypeStruct`s.

    Returns:
      The transformation, whose state has a leaf for each trainable parameter, and the schedule: number of
      updates done -> learning rate of the next, before factors.

    Raises:
      UserError: an unknown or missing key or name, a value out of range, a path that no rule covers.
    """
    _check_spec(spec)
    schedule = make_schedule(spec, total_steps)
    paths = list(tree.flatten(trainable))
    factors = tree.unflatten(tree.match(spec["lr_factors"], paths, "optimizer.lr_factors"))
    decayed = tree.unflatten(tree.match(spec["decay"], paths, "optimizer.decay"))
    transformation = optax.chain(
        optax.clip_by_global_norm(spec["clip"]) if spec["clip"] else optax.identity(),
        optax.scale_by_adam(spec["b1"], spec["b2"], spec["eps"]),
        optax.add_decayed_weights(spec["weight_decay"], mask=decayed),
        # After the decay, so that a factor slows all that moves a parameter.
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors)),
        optax.scale_by_learning_rate(schedule),
    )
    return transformation, schedule


def make_schedule(spec: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """From 0 up to the peak in a straight line, then down, or level, to the end.

    Args:
      spec: `lr`, the peak; `warmup`, in updates or, below 1, as a fraction of all; `schedule`, 'cosine',
        'linear' or 'constant'; `final`, the fraction of the peak at the end (1 for 'constant').
      total_steps: the update after the last; its rate would be `lr * final`.

    Raises:
      UserError: a value out of range.
    """
    peak, final, warmup = spec["lr"], spec["final"], spec["warmup"]
    # A fraction is rounded up, as Hugging Face's `warmup_ratio` is: published recipes are given in it.
    warmup = math.ceil(warmup * total_steps) if warmup < 1 else warmup
    if warmup != int(warmup) or not 0 <= warmup < total_steps:
        raise UserError(
            f"optimizer.warmup: {spec['warmup']!r} is neither a fraction below 1 nor a whole number of updates "
            f"below the stage's {total_steps}."
        )
    warmup, rest = int(warmup), total_steps - int(warmup)
    if spec["schedule"] == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=final)
    elif spec["schedule"] == "linear":
        after = optax.linear_schedule(peak, peak * final, rest)
    elif final == 1:
        after = optax.constant_schedule(peak)
    else:
        raise UserError(f"optimizer.final: {final!r}; a constant schedule ends at its peak, so it must be 1.")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def _check_spec(spec: Mapping[str, Any]) -> None:
    for key in spec:
        if key not in KEYS:
            raise UserError(f"optimizer: no key {key!r}" + suggest(key, KEYS))
    missing = [key for key in KEYS if key not in spec]
    if missing:
        raise UserError(f"optimizer: missing {', '.join(missing)}.")
    for key, known in (("type", ("adamw",)), ("schedule", SCHEDULES)):
        if spec[key] not in known:
            raise UserError(f"optimizer.{key}: no {spec[key]!r}" + suggest(spec[key], known))
    for key in ("lr", "warmup", "final", "weight_decay", "clip"):
        if spec[key] < 0:
            raise UserError(f"optimizer.{key}: {spec[key]!r} is negative.")
