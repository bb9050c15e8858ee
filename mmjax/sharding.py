"""The mesh, and how parameters and activations lie on it.

Axes: `data` (copies of the model), `fsdp` (parameters and optimizer state split, gathered layer by layer),
`tensor` (matrices split, Megatron-style). The same program runs on any shape of the mesh, one device included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax import tree
from mmjax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# What a named dimension of an activation is split over.
ACTIVATIONS = {
    "batch": ("data", "fsdp"),
    "seq": None,
    "embed": None,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

# What the last dimensions of a parameter are split over; the leading layer axis of a stack is never split.
# Matrices into a wider space split their outputs over `tensor`, those back split their inputs, so that the
# pair needs one all-reduce (Megatron-LM, section 3).
PARAMETERS = (
    (r"lora_scale$", ()),
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "fsdp")),
    (r"embedding$", ("tensor", "fsdp")),
    (r"(out|down)/kernel$", ("tensor", "fsdp")),
    (r"kernel$", ("fsdp", "tensor")),
    (r".*", ()),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the given axis sizes; one of them may be -1, 'all that are left'.

    Raises:
      UserError: unknown axes, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if unknown := set(shape) - set(AXES):
        raise UserError(f"mesh: unknown axes {sorted(unknown)}; the axes are {AXES}.")
    sizes = [shape.get(axis, 1) for axis in AXES]
    if wrong := [axis for axis, size in zip(AXES, sizes, strict=True) if size < 1 and size != -1]:
        raise UserError(f"mesh.{wrong[0]}: {shape[wrong[0]]} is no size of an axis: 1 or more, or -1 once.")
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // -int(np.prod(sizes))
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        raise UserError(f"mesh: {dict(shape)} does not fill {len(devices)} devices; set one axis to -1.")
    # make_mesh gives Explicit axes by default since JAX 0.9; this code relies on the compiler's propagation.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def one_device() -> Mesh:
    """The mesh of this process's first device alone."""
    return make_mesh({"data": 1}, jax.local_devices()[:1])


def fit(spec: Sequence[Any], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The spec for the last dimensions of `shape`, without the axes that do not divide their dimension."""
    spec = [None] * (len(shape) - len(spec)) + list(spec)[max(0, len(spec) - len(shape)) :]
    fitted = []
    for size, axes in zip(shape, spec, strict=True):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        ways = int(np.prod([mesh.shape[axis] for axis in axes]))
        fitted.append(axes if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*fitted)


def shard_tree(shapes: Any, mesh: Mesh, rules: tree.Rules = PARAMETERS) -> Any:
    """A NamedSharding for every leaf of parameters, or of a training state whose moments end in their paths."""
    leaves, structure = jax.tree.flatten_with_path(shapes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    specs = tree.match(rules, paths, "sharding rules")
    return structure.unflatten(
        NamedSharding(mesh, fit(specs[path], leaf.shape, mesh))
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks that an activation be split by its dimensions' names; no mesh set, no effect."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = fit([ACTIVATIONS[name] if name else None for name in names], x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`, the rest of each array whole."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"]))
