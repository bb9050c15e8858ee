"""Killed for good: a child trains and saves without pause, and is killed."""

import os
import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import CONFIG, abstract_of, assert_bit_equal

from mmjax.training import checkpoint
from mmjax.training.checkpoint import Checkpoints


def child_state(step):
    """Told by its step alone; large enough for a save to take a while, and quick to make."""
    arrays = {str(i): jnp.asarray(np.full(500_000, 10 * step + i, np.float32)) for i in range(8)}
    return {"params": arrays, "rest": {"step": jnp.asarray(np.int32(step))}}


def train_until_killed(directory, die_while_sealing):
    """Resumes, checks what it resumed from, and saves every step; prints each step it has begun to save."""
    if die_while_sealing:
        checkpoint.seal = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = Checkpoints(directory, keep=2)
    step = 0
    if checkpoints.latest() is not None:
        state, data, step = checkpoints.restore(abstract_of(child_state(0)))
        assert data["step"] == step
        assert_bit_equal(state, child_state(step))
    while True:
        step += 1
        checkpoints.save(step, child_state(step), {"step": step}, CONFIG)
        print(step, flush=True)


def run_and_kill(directory, delay=None):
    """Starts the child, kills it `delay` seconds after its second save began (None: it kills itself)."""
    how = "seal" if delay is None else "train"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, how, str(directory)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            if delay is None:
                child.wait(timeout=120)
            else:
                begun = [int(child.stdout.readline() or -1) for _ in range(2)]
                assert begun[1] > 0, child.stderr.read().decode()
                time.sleep(delay)
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_run_that_resumes(tmp_path):
    random.seed(0)
    left_behind, resumed = set(), []
    for delay in [0.0, *(random.uniform(0, 0.5) for _ in range(3))]:
        run_and_kill(tmp_path, delay)
        left_behind |= {path.name for path in tmp_path.iterdir() if not path.name.isdecimal()}
        resumed.append(Checkpoints(tmp_path, keep=2).latest())
    assert resumed == sorted(resumed) and resumed[0] < resumed[-1]
    assert left_behind, "no kill fell into a save"
    assert not [name for name in left_behind if name.startswith("damaged")]

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        step = checkpoints.restore(abstract_of(child_state(0))).step
        checkpoints.save(step + 1, child_state(step + 1), {}, CONFIG)
    assert all(path.name.isdecimal() for path in tmp_path.iterdir())  # swept


def test_a_kill_between_commit_and_seal_loses_nothing(tmp_path, caplog):
    run_and_kill(tmp_path)
    assert [path.name for path in (tmp_path / "1").iterdir() if path.name.startswith("manifest.json")] == []
    assert Checkpoints(tmp_path, keep=2).restore(abstract_of(child_state(0))).step == 1
    assert "not verified" in caplog.text


if __name__ == "__main__":
    train_until_killed(sys.argv[2], die_while_sealing=sys.argv[1] == "seal")
