"""The same training on one device and on eight, and where its state lies."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmjax.sharding import constrain, fit, make_mesh, shard_tree

QUERY = "backbone/layers/attention/query/kernel"  # [2 layers, 32, 64]
OUT = "backbone/layers/attention/out/kernel"  # [2, 64, 32]
EMBEDDING = "backbone/embedding"  # [128, 32]
NORM = "backbone/norm_out/scale"  # [32]
SHARES = {
    "data": {QUERY: (2, 32, 64), OUT: (2, 64, 32), EMBEDDING: (128, 32), NORM: (32,)},
    "fsdp": {QUERY: (2, 4, 64), OUT: (2, 64, 4), EMBEDDING: (128, 4), NORM: (32,)},
    "tensor": {QUERY: (2, 32, 8), OUT: (2, 8, 32), EMBEDDING: (16, 32), NORM: (32,)},
    "mixed": {QUERY: (2, 16, 32), OUT: (2, 32, 16), EMBEDDING: (64, 16), NORM: (32,)},
}
RUNS = [("splice", "data"), ("splice", "fsdp"), ("splice", "mixed")]
RUNS += [pytest.param(*run, marks=pytest.mark.slow) for run in (("splice", "tensor"), ("xattn", "mixed"))]


@functools.cache
def trained(fusion, mesh):
    """What sharded_steps.py finds: {'losses' or path: value, path/share: shape}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.npz"
        script = Path(__file__).with_name("sharded_steps.py")
        # The compiler's complaints are heard only when it compiles.
        env = os.environ | ({"JAX_ENABLE_COMPILATION_CACHE": "false"} if mesh == "mixed" else {})
        run = subprocess.run([sys.executable, script, file, fusion, mesh], capture_output=True, text=True, env=env)
        assert run.returncode == 0, run.stderr[-4000:]
        assert "Involuntary full rematerialization" not in run.stderr, run.stderr[-4000:]
        with np.load(file) as found:
            return dict(found)


@pytest.mark.parametrize(("fusion", "mesh"), RUNS)
def test_eight_devices_train_as_one_does(fusion, mesh):
    one, eight = trained(fusion, "one"), trained(fusion, mesh)
    assert one["losses"][0] - one["losses"][2] > 0.1
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    paths = [path for path in one if path.startswith("params/") and not path.endswith("/share")]
    assert len(paths) > 15
    for path in paths:
        np.testing.assert_allclose(eight[path], one[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("fusion", "mesh"), RUNS)
def test_each_device_holds_its_share_of_parameters_and_moments(fusion, mesh):
    found = trained(fusion, mesh)
    for path, share in SHARES[mesh].items():
        assert tuple(found[f"params/{path}/share"]) == share, path
    for path, share in found.items():
        if path.startswith("params/") and path.endswith("/share"):
            for copy in ("ema", "optimizer/1/mu", "optimizer/1/nu"):
                assert (found[copy + path.removeprefix("params")] == share).all(), path
    frozen = "frozen/encoders/image/layers/mlp/up/kernel"
    ways = dict(data=1, fsdp=8, tensor=8, mixed=4)[mesh]
    assert found[frozen].size / np.prod(found[f"{frozen}/share"]) == ways


def test_the_mesh_fills_the_devices():
    devices = jax.devices()[:1]
    assert dict(make_mesh(dict(data=-1), devices).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"unknown axes \['model'\]"):
        make_mesh(dict(model=1), devices)
    with pytest.raises(ValueError, match="does not fill 1 devices"):
        make_mesh(dict(fsdp=2), devices)
    with pytest.raises(ValueError, match="does not fill 1 devices"):
        make_mesh(dict(fsdp=2, data=-1), devices)


class Shape:
    """A mesh of eight devices, as far as `fit` looks at it."""

    shape = dict(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (("fsdp", "tensor"), (8, 6), ("fsdp", "tensor")),
        (("fsdp", "tensor"), (3, 8, 6), (None, "fsdp", "tensor")),  # a stack's layers are not split
        (("fsdp", "tensor"), (8, 5), ("fsdp", None)),  # what does not divide stays whole
        ((("data", "fsdp"), None), (8, 6), (("data", "fsdp"), None)),
        ((("data", "fsdp"), None), (6, 6), (None, None)),
        (("fsdp", "tensor"), (6,), ("tensor",)),
        ((), (8, 6), (None, None)),
    ],
)
def test_fit(spec, shape, expected):
    as_axes = [(axes,) if isinstance(axes, str) else axes for axes in expected]
    assert fit(spec, shape, Shape) == PartitionSpec(*as_axes)


def test_every_leaf_needs_a_rule():
    mesh = make_mesh(dict(data=1), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"sharding rules: no rule covers 1 parameters(.|\n)*b/bias"):
        shard_tree({"a": {"kernel": np.zeros((2, 2))}, "b": {"bias": np.zeros(2)}}, mesh, [("kernel$", ())])


def test_without_a_mesh_nothing_is_constrained():
    x = np.zeros((2, 3))
    assert constrain(x, "batch", "embed") is x
