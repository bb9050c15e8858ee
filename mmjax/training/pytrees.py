"""Named pytrees in a folder of Orbax: started to be written, compared with what is asked for, read in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from mmjax.errors import UserError
from mmjax.tree import explain_mismatch


class MismatchError(UserError):
    """The state asked for is not the one saved: no fault of the files, so no reason to fall back."""


def start_save(path: epath.Path, parts: Mapping[str, Any], beside: Mapping[str, Any]) -> ocp.AsyncResponse[None]:
    """Starts to write a folder, `beside` as its metadata; returns once the arrays are copied to the host."""
    context = ocp.Context()
    # Compressed, trained floats are 7 % smaller and take four times as long.
    context.array.saving.use_compression = False
    with context:
        return ocp.save_checkpointables_async(path, with_arrays(parts), custom_metadata=dict(beside))


def open_pytree(path: epath.Path) -> tuple[Any, Callable[[Any], Any]]:
    """Shapes of the `params` in a folder, and what reads some of them."""
    saved = ocp.metadata(path, "params").metadata

    def read(abstract: Any) -> Any:
        check(abstract, saved, path, subset=True)
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return ocp.load_checkpointables(path, {"params": abstract})["params"]

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved), read


def with_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that hold arrays: Orbax refuses to save a tree without any."""
    return {name: part for name, part in state.items() if jax.tree.leaves(part)}


def _leaves(parts: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree, for `explain_mismatch`: a named tuple's fields become keys."""
    leaves = jax.tree.leaves_with_path(parts)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check(abstract: Any, saved: Any, path: epath.Path, subset: bool) -> None:
    """Raises unless the checkpoint has what is asked for and, but for a subset, nothing else or otherwise."""
    want, have = _leaves(abstract), _leaves(saved)
    if subset:
        have = {name: have[name] for name in want if name in have}
    lines = [explain_mismatch(want, have)]
    lines += [
        f"  dtype     {name} is {have[name].dtype}, the model wants {want[name].dtype}"
        for name in want
        if not subset and name in have and np.dtype(want[name].dtype) != np.dtype(have[name].dtype)
    ]
    if any(lines):
        raise MismatchError(
            f"{path}: the config is for another model than the checkpoint:\n"
            + "\n".join(line for line in lines if line)
            + "\nTake the checkpoint's config, or another directory."
        )
