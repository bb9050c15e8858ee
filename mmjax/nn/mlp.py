"""The feed-forward half of a transformer layer."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.nn.linear import Linear
from mmjax.sharding import constrain
from mmjax.typed import suggest

ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "silu": nn.silu,
}
Activation = Literal[tuple(ACTIVATIONS)]


def activation(name: str):
    """The activation of that name.

    Raises:
      UserError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation: no {name!r}" + suggest(name, ACTIVATIONS))
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020). [..., D] -> [..., D]."""

    hidden: int
    activation: Activation
    gated: bool
    bias: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = functools.partial(Linear, bias=self.bias, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        up = linear(self.hidden, name="up")(x)
        hidden = act(linear(self.hidden, name="gate")(x)) * up if self.gated else act(up)
        hidden = constrain(hidden, *["batch", "seq", "mlp"][-hidden.ndim :])
        return linear(x.shape[-1], name="down")(hidden)
