"""A dense layer that carries LoRA adapters wherever its parameters hold them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import tree


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """x [..., D] @ w [D, F], in `dtype` if given, without rounding to x's dtype before.

    Its own gradient rule only names the order of the weight gradient's product: JAX's makes the transpose of it,
    for which XLA on CPU recomputes what comes before, column by column."""
    return jnp.matmul(x, w, preferred_element_type=dtype)


def _matmul_forward(x, w, dtype):
    return matmul(x, w, dtype), (x, w)


def _matmul_backward(_, saved, dy):
    x, w = saved
    dy = dy.astype(x.dtype)
    flat = lambda y: y.reshape(-1, y.shape[-1])  # noqa: E731
    dw = jax.lax.dot_general(flat(x), flat(dy), (((0,), (0,)), ((), ())))
    return dy @ w.T, dw


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """y = x W + b over the last axis, with W [D_in, D_out]. out_dtype: of y, where it is not `dtype`.

    LoRA is not a mode of the layer but a fact of its parameters: where `lora_a` [D_in, R], `lora_b` [R, D_out]
    and `lora_scale` [] stand beside the kernel (`add_lora` puts them there by path rules),
    y += scale (x A) B (Hu et al. 2021, equation 3).
    """

    features: int
    bias: bool
    dtype: Any
    param_dtype: Any
    kernel_init: Callable = nn.initializers.lecun_normal()
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        x = x.astype(self.dtype)
        y = matmul(x, kernel.astype(self.dtype), self.out_dtype)
        if self.has_variable("params", "lora_a"):
            a, b, scale = (self.get_variable("params", f"lora_{n}") for n in ("a", "b", "scale"))
            y += (x @ a.astype(self.dtype)) @ b.astype(self.dtype) * scale.astype(self.dtype)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(y.dtype)
        return y


def add_lora(params: tree.Tree, rules: tree.Rules, rng: jax.Array, where: str = "lora") -> dict[str, Any]:
    """Params with adapters beside each kernel that a rule `(regex, adapter)` finds; an adapter has a rank R
    and an alpha A.

    A starts as He-uniform noise and B as zeros, so the model's function is unchanged; scale = A / R. Kernels
    that carry adapters already are left alone, so that a later stage may go on with those of the stage before.

    Raises:
      UserError: a rule that finds no kernel.
    """
    flat = tree.flatten(params)
    kernels = {path: leaf for path, leaf in flat.items() if path.endswith("/kernel")}
    for pattern, _ in rules:
        tree.select([pattern], kernels, where)
    found = tree.match([*rules, (".*", None)], kernels, where)
    for i, (path, spec) in enumerate(found.items()):
        stem = path.removesuffix("kernel")
        if spec is None or stem + "lora_a" in flat:
            continue
        *layers, d_in, d_out = kernels[path].shape
        rank, dtype = spec.rank, jnp.float32
        bound = (1.0 / d_in) ** 0.5  # torch's kaiming_uniform_(a=sqrt(5)), as in the reference implementation
        flat[stem + "lora_a"] = jax.random.uniform(
            jax.random.fold_in(rng, i), (*layers, d_in, rank), dtype, -bound, bound
        )
        flat[stem + "lora_b"] = jnp.zeros((*layers, rank, d_out), dtype)
        flat[stem + "lora_scale"] = jnp.full(layers, spec.alpha / rank, dtype)
    return tree.unflatten(flat)


def merge_lora(params: tree.Tree) -> dict[str, Any]:
    """Params with every adapter folded into its kernel: the same function, no adapter leaves."""
    flat = dict(tree.flatten(params))
    for path in [p for p in flat if p.endswith("/lora_a")]:
        stem = path.removesuffix("lora_a")
        a, b, scale = (flat.pop(stem + f"lora_{n}") for n in ("a", "b", "scale"))
        kernel = flat[stem + "kernel"]
        flat[stem + "kernel"] = (kernel + scale[..., None, None] * (a @ b)).astype(kernel.dtype)
    return tree.unflatten(flat)
