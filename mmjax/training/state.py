"""What training carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mmjax import tree


@struct.dataclass
class TrainState:
    """step: int32 [], steps taken. params: the trainable parameters. frozen: the others, in `frozen_dtype`.

    optimizer: optax state of `params` alone. ema: running mean of `params`, {} if not asked for.
    skipped: int32 [], steps whose loss or gradient was not finite. rng: key data uint32 [2].
    """

    step: jax.Array
    params: Any
    frozen: Any
    optimizer: Any
    ema: Any
    skipped: jax.Array
    rng: jax.Array

    def all_params(self) -> dict[str, Any]:
        """The whole model's parameters, trained and frozen."""
        return tree.merge(self.frozen, self.params)


def make_state(
    params: Mapping[str, Any],
    trainable: Sequence[str],
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    *,
    frozen_dtype: Any,
    ema: bool,
) -> TrainState:
    """The state at step 0. trainable: path regexes of what is trained; each must find something."""
    params, frozen = tree.partition(params, tree.select(trainable, params, "trainable"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=jax.tree.map(lambda leaf: leaf.astype(frozen_dtype), frozen),
        optimizer=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        skipped=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(rng),
    )
