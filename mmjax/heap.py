"""The heap of a process that computes on the CPU."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import entry_points
from importlib.util import find_spec

# mallopt(3), malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for what is allocated next. To be called before JAX starts its threads.

    A step of XLA on the CPU frees its buffers and the next one wants the same again; glibc gives large ones back
    to the system, which hands them out anew, zeroed, page by page: a fifth of a step's time. One heap for all
    threads, which only grows, ends that. No effect where the C library is another one, or where JAX has an
    accelerator, which has an allocator of its own.
    """
    if not _on_cpu():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
        mallopt(option, value)


def _on_cpu() -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not (entry_points(group="jax_plugins") or find_spec("jax_plugins") or find_spec("libtpu"))
