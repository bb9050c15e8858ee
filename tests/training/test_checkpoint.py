import json
import logging
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small import read_params

from mmjax.errors import UserError
from mmjax.training import checkpoint
from mmjax.training.checkpoint import Checkpoints

DATA = {"epoch": 1, "position": [3, 4], "mixture": {"captions": 5, "questions": None}}
CONFIG = "model: {width: 8}\n"


@struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    frozen: dict
    optimizer: optax.OptState
    ema: dict
    skipped: jax.Array
    rng: jax.Array


def make_state(seed=0, width=8, ema=False, size=16):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "projector": {"kernel": jax.random.normal(keys[0], (size, width)), "bias": jnp.zeros(width)},
        "lora": {"a": jax.random.normal(keys[1], (size, 4), jnp.bfloat16)},
    }
    decayed = {"projector": {"kernel": True, "bias": False}, "lora": {"a": True}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.linear_schedule(0.0, 1.0, 10), mask=decayed),
    )
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(jax.tree.map(lambda x: x * 0.37, params), opt_state, params)
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        frozen={"encoder": {"kernel": jax.random.normal(keys[2], (size, 8), jnp.bfloat16)}},
        optimizer=opt_state,
        ema=jax.tree.map(lambda x: x * 0.5, params) if ema else {},
        skipped=jnp.int32(2),
        rng=jax.random.key_data(jax.random.key(seed + 1)),
    )


def parts(state):
    """A training state as the named pytrees that Checkpoints takes."""
    return {
        "params": {"trainable": state.params, "frozen": state.frozen, "ema": state.ema},
        "optimizer": state.optimizer,
        "rest": {"step": state.step, "skipped": state.skipped, "rng": state.rng},
    }


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_bit_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(directory, *steps, keep=10):
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, parts(make_state(step)), DATA | {"step": step}, CONFIG)


ABSTRACT = abstract_of(parts(make_state()))


@pytest.mark.parametrize("ema", [False, True])
def test_the_whole_state_comes_back_bit_equal(tmp_path, ema):
    state = parts(make_state(7, ema=ema))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(7, state, DATA, CONFIG)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        found, data, step = checkpoints.restore(abstract_of(state))
        assert (data, step, checkpoints.config()) == (DATA, 7, CONFIG)
    assert_bit_equal(found, state)


def test_a_part_without_arrays_comes_back(tmp_path):
    state = {"params": {"w": jnp.ones(3)}, "optimizer": (optax.EmptyState(),), "rest": {}}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, "")
        found, data, _ = checkpoints.restore(abstract_of(state))
    assert_bit_equal(found, state)
    assert data == {}


def test_arrays_saved_on_one_mesh_come_back_on_another(tmp_path):
    """Runs in a process of its own, for the devices are chosen before JAX starts."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=300)


def save_and_restore_sharded(directory):
    assert jax.device_count() == 8
    values = jax.random.normal(jax.random.key(0), (16, 8), jnp.bfloat16)

    def on(shape, spec):
        mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        return NamedSharding(mesh, PartitionSpec(*spec))

    first, second = on((2, 4), ("fsdp", "data")), on((1, 8), (None, "fsdp"))
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(1, {"params": {"w": jax.device_put(values, first)}}, {}, "")
        wanted = {"params": {"w": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=second)}}
        found = checkpoints.restore(wanted).state["params"]["w"]
        assert found.sharding == second
        assert {shard.data.shape for shard in found.addressable_shards} == {(16, 1)}
        assert np.asarray(found).tobytes() == np.asarray(values).tobytes()
        _, read = checkpoints.open_params()
        assert read({"w": wanted["params"]["w"]})["w"].sharding == second


def test_the_newest_steps_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep=2)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == [3, 4]
    assert checkpoints.latest() == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    with pytest.raises(ValueError, match="at least one"):
        Checkpoints(tmp_path, keep=0)


def test_a_step_saved_already_is_left_alone(tmp_path):
    save_steps(tmp_path, 5)
    before = (tmp_path / "5" / "manifest.json").stat().st_mtime_ns
    save_steps(tmp_path, 5)
    assert (tmp_path / "5" / "manifest.json").stat().st_mtime_ns == before


def test_the_state_may_be_donated_at_once(tmp_path):
    values = jnp.arange(4e6)
    wanted = np.asarray(values).copy()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"params": {"w": values}}, {}, "")
        jax.block_until_ready(jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(values))
        found = read_params(checkpoints)["w"]
    np.testing.assert_array_equal(found, wanted)


def test_save_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """However long the checksums take, only the next save feels it."""
    seal = checkpoint.seal
    monkeypatch.setattr(checkpoint, "seal", lambda path: (time.sleep(2), seal(path)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        begun = time.monotonic()
        checkpoints.save(1, parts(make_state()), DATA, CONFIG)
        assert time.monotonic() - begun < 1
        checkpoints.wait()
        assert time.monotonic() - begun > 2
        assert (tmp_path / "1" / "manifest.json").exists()


def test_a_failed_save_is_told(tmp_path, monkeypatch):
    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "seal", full)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UserError, match="1: saving the checkpoint failed: No space left"):
            checkpoints.save(1, parts(make_state()), DATA, CONFIG, wait=True)
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(2, parts(make_state()), {"position": object()}, CONFIG)


def array_file(step):
    """The file that holds the arrays of `params`."""
    return max((step / "params" / "d").iterdir(), key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda step: flip_a_bit(array_file(step)),
    "0 bytes": lambda step: array_file(step).write_bytes(b""),
    "a file cut short": lambda step: os.truncate(array_file(step), 100),
    "a lost file": lambda step: (step / "optimizer" / "manifest.ocdbt").unlink(),
    "a manifest of 0 bytes": lambda step: (step / "manifest.json").write_bytes(b""),
    **{
        f"a manifest of {text:.20}": lambda step, text=text: (step / "manifest.json").write_text(text)
        for text in ("[]", "3", "null", '{"a": 3}', '{"a": [3]}', '{"a": ["3", 3]}', '{"a": {"b": 1}}', "[" * 9999)
    },
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_falls_back_to_the_one_before(tmp_path, caplog, damage):
    save_steps(tmp_path, 1, 2, 3)
    DAMAGES[damage](tmp_path / "3")
    with Checkpoints(tmp_path, keep=10) as checkpoints, caplog.at_level(logging.WARNING):
        state, data, step = checkpoints.restore(ABSTRACT)
        assert (step, data["step"]) == (2, 2)
        assert_bit_equal(state, parts(make_state(2)))
        assert f"DAMAGED CHECKPOINT {tmp_path / '3'}" in caplog.text
        assert checkpoints.steps() == [1, 2] and (tmp_path / "damaged-3").exists()
        checkpoints.save(3, parts(make_state(3)), DATA, CONFIG)  # its place is free again
        assert checkpoints.restore(ABSTRACT).step == 3


def test_the_warning_names_the_damaged_file(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    damaged = array_file(tmp_path / "2").relative_to(tmp_path / "2")
    (tmp_path / "2" / damaged).write_bytes(b"")
    Checkpoints(tmp_path, keep=2).restore(ABSTRACT)
    assert f"{damaged} has 0 bytes" in caplog.text


def test_a_flipped_bit_in_a_large_array_is_found(tmp_path):
    """Orbax by itself would hand it over."""
    state = {"params": {"w": jnp.ones((1000, 1000))}}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, "")
    flip_a_bit(max((tmp_path / "2").rglob("d/*"), key=lambda path: path.stat().st_size))
    assert Checkpoints(tmp_path, keep=2).restore(abstract_of(state)).step == 1


def test_no_whole_step_is_a_clear_error(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", keep=2)
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoints.restore(ABSTRACT)
    save_steps(tmp_path, 1, 2)
    for step in "12":
        array_file(tmp_path / step).write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint is whole; damaged are 1, 2\."):
        read_params(checkpoints)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint is whole; damaged are damaged-1, damaged-2\."):
        checkpoints.restore(ABSTRACT)


def test_a_step_without_manifest_is_restored_unverified(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / "manifest.json").unlink()
    state, _, step = Checkpoints(tmp_path, keep=2).restore(ABSTRACT)
    assert step == 2
    assert_bit_equal(state, parts(make_state(2)))
    assert "not verified" in caplog.text


def test_a_damaged_step_without_manifest_falls_back(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / "manifest.json").unlink()
    for file in (tmp_path / "2" / "params" / "d").iterdir():
        flip_a_bit(file)
    assert Checkpoints(tmp_path, keep=2).restore(ABSTRACT).step == 1
    assert "params cannot be read" in caplog.text


def test_another_model_than_the_checkpoint_is_explained(tmp_path):
    save_steps(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(ValueError, match="another model than the checkpoint") as error:
        checkpoints.restore(abstract_of(parts(make_state(width=9))))
    assert "shape     params/trainable/projector/kernel is (16, 8), the model wants (16, 9)" in str(error.value)
    with pytest.raises(ValueError, match="missing   params/ema/lora/a"):
        checkpoints.restore(abstract_of(parts(make_state(ema=True))))
    without_optimizer = {name: part for name, part in ABSTRACT.items() if name != "optimizer"}
    with pytest.raises(ValueError, match="surplus   optimizer/"):
        checkpoints.restore(without_optimizer)
    other_dtype = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding), ABSTRACT)
    with pytest.raises(ValueError, match="lora/a is bfloat16, the model wants float32"):
        checkpoints.restore(other_dtype)
    assert checkpoints.steps() == [1]  # nobody took it for damaged


def test_params_are_restored_without_the_optimizer(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / "optimizer" / "manifest.ocdbt").write_bytes(b"")
    (tmp_path / "2" / "rest" / "_METADATA").unlink()
    checkpoints = Checkpoints(tmp_path, keep=2)
    wanted = {k: v for k, v in parts(make_state(2))["params"].items() if k != "ema"}
    found = read_params(checkpoints)
    assert_bit_equal({k: found[k] for k in wanted}, wanted)
    subset = {"frozen": {"encoder": {"kernel": ABSTRACT["params"]["frozen"]["encoder"]["kernel"]}}}
    assert_bit_equal(checkpoints.open_params()[1](subset), {"frozen": wanted["frozen"]})
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding), subset)
    assert checkpoints.open_params(1)[1](cast)["frozen"]["encoder"]["kernel"].dtype == np.float32
    assert not caplog.records  # the optimizer's damage is no concern here


def test_params_refuse_what_is_not_there(tmp_path):
    save_steps(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, keep=2)
    other = {"adapter": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(ValueError, match=r"missing   adapter \(3,\)"):
        checkpoints.open_params()[1](other)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 9, only of \[1, 2\]"):
        checkpoints.open_params(9)
    for file in (tmp_path / "2" / "params" / "d").iterdir():
        flip_a_bit(file)
    with pytest.raises(ValueError, match="2 is damaged: params/d/"):
        checkpoints.open_params(2)
    assert_bit_equal(read_params(checkpoints)["trainable"], parts(make_state(1))["params"]["trainable"])
    assert checkpoints.steps() == [1, 2]  # inference moves nothing


def test_the_manifest_covers_every_file(tmp_path):
    save_steps(tmp_path, 1)
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    files = {str(path.relative_to(tmp_path / "1")) for path in (tmp_path / "1").rglob("*") if path.is_file()}
    assert set(manifest) == files - {"manifest.json"}


if __name__ == "__main__":
    save_and_restore_sharded(sys.argv[1])
