"""That a step on the CPU finds the memory of the step before."""

import ctypes
import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from mmjax.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import jax, jax.numpy as jnp

step = jax.jit(lambda x: jnp.tanh(x) * 2)
x = jnp.ones((64 << 20) // 4)
for i in range(30):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how, **environment):
    command = [sys.executable, "-c", STEPS, how]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_steps_take_no_new_memory():
    plain, kept = page_faults("plain"), page_faults("kept", JAX_PLATFORMS="cpu")
    assert plain > 1000  # a step's output is 64 MiB, 16,384 pages
    assert kept < plain / 20
