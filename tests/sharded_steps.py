"""Three training steps on a mesh of fake devices; test_sharding.py runs it in a process of its own.

    python sharded_steps.py RESULTS.npz FUSION MESH

RESULTS gets `losses`, and for each leaf of the state after the steps its value, by its path, and the shape of one
device's share of it, by `PATH/share`.
"""

import math
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"

import jax
import jax.numpy as jnp
import numpy as np
from small import make_batch, random_params, small_model

from mmjax import tree
from mmjax.sharding import batch_sharding, make_mesh, shard_tree
from mmjax.training.optimizer import make_optimizer
from mmjax.training.state import make_state
from mmjax.training.step import make_step

MESHES = {
    "one": dict(data=1),
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "mixed": dict(data=2, fsdp=2, tensor=2),
    "tensor": dict(tensor=8),
}
LOSSES = dict(next_token=dict(type="objectives.language.next_token", weight=1.0))
ADAMW = dict(
    type="adamw", lr=1e-2, schedule="constant", warmup=0, final=1, b1=0.9, b2=0.98, eps=1e-3,
    weight_decay=0.1, clip=1.0, lr_factors=[(".*", 1.0)], decay=[(".*", True)],
)  # fmt: skip
# Pictures in the first row alone: seven of eight devices have none.
ROWS = [["look #: a cat", "# a hen"], *([f"row {i} is text", "x" * i] for i in range(1, 8))]


def train(fusion, shape):
    """-> the losses, and the state after the steps, on a mesh of that shape."""
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    model = small_model(fusion, heads=8, kv_heads=8)  # so that `tensor` has heads to split eight ways
    params = random_params(model)
    trainable = ["^projectors/", "^backbone/"]
    chosen, _ = tree.partition(params, tree.select(trainable, params, "trainable"))
    optimizer, _ = make_optimizer(ADAMW, 10, chosen)

    def begin(params):
        key = jax.random.key(0)
        return make_state(params, trainable, optimizer, key, frozen_dtype=jnp.float32, ema=True)

    with jax.set_mesh(mesh):
        shardings = shard_tree(jax.eval_shape(begin, params), mesh)
        state = jax.device_put(begin(params), shardings)
        batch = jax.device_put(make_batch(fusion, ROWS, length=32), batch_sharding(mesh))
        step = make_step(model, LOSSES, optimizer, accumulate=1, ema=0.9)
        step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        losses = []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, state


def main(file, fusion, mesh):
    losses, state = train(fusion, MESHES[mesh])
    results = {"losses": losses}
    for path, leaf in jax.tree.flatten_with_path(state)[0]:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        results[path] = np.asarray(leaf)
        results[f"{path}/share"] = leaf.addressable_shards[0].data.shape
    np.savez(file, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
