"""Many copies of one layer, their parameters stacked on a leading axis and run by one `lax.scan`.

One compiled body for any depth: compile time does not grow with it, and a rule, a checkpoint or a sharding
speaks of a layer's kernel once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def stacked(parent: nn.Module, name: str, layer: nn.Module, depth: int, *args: Any, **kwargs: Any) -> Any:
    """The parameters of `depth` copies of `layer`, each leaf [depth, ...], kept in `parent` under `name`.

    `args` and `kwargs` are example inputs for the layer's initialisation.
    """
    if parent.is_initializing() and not parent.has_variable("params", name):
        keys = jax.random.split(parent.make_rng("params"), depth)
        params = jax.vmap(lambda key: layer.init(key, *args, **kwargs)["params"])(keys)
        parent.put_variable("params", name, params)
    return parent.get_variable("params", name)


def run(body: Callable, carry: Any, xs: Any, *, remat: bool, scan: bool) -> tuple[Any, Any]:
    """carry, y = body(carry, x) for each x of the stacked `xs`; returns the last carry and the stacked ys.

    remat: keep only the carries, and compute the inside of each body again in the backward pass.
    scan: False unrolls the loop: the same numbers, a larger program.
    """
    if remat:
        body = jax.checkpoint(body, prevent_cse=not scan)
    return jax.lax.scan(body, carry, xs, unroll=1 if scan else True)
