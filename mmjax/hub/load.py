"""Pretrained parts into a model: `load = [('backbone', 'hf:PATH'), ('encoders/image', 'hf:PATH'), ...]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import tree
from mmjax.hub import efficientnet, openflamingo
from mmjax.hub.aside import KEPT
from mmjax.hub.folder import HubFolder
from mmjax.hub.packaged import packaged_encoder
from mmjax.hub.places import require_own_files
from mmjax.hub.table import Move, Row, check, made_shapes, moves, ours_dtypes, to_ours
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, Spec, Tensors, shown

VOCABULARY = ("embedding", "head/kernel", "head/bias")  # the backbone's leaves with an axis for the vocabulary
ADDED = re.compile(r"^(backbone/)?(xattn/|additional_)")  # what no language model has by itself
WEIGHTS = "weights"  # where a converted workdir keeps its parameters


def load_parts(
    rules: Sequence[tuple[str, str]], shapes: tree.Tree, shardings: tree.Tree, as_saved: bool = False
) -> dict[str, Any]:
    """The parameters that the rules name, read one tensor at a time straight onto their devices.

    Args:
      rules: (part, source). A part is a path of the model ('backbone', 'encoders/image', or '' for all of it).
        A source is 'hf:FOLDER', a Hugging Face checkpoint, 'mmjax:WORKDIR', what `mmjax convert` made,
        'openflamingo:FOLDER' (hub/openflamingo.py), or 'package:NAME', an installed one (hub/packaged.py).
      shapes, shardings: of the whole model's parameters.
      as_saved: whether parameters keep the dtype of their tensors, not that of `shapes`: bfloat16 takes half the
        memory, and gives the same numbers where the model casts what it multiplies.

    Returns:
      Those parts of the tree, nothing else; without gated cross-attention and additional tokens where a family of
      Hugging Face has none of these.

    Raises:
      CheckpointError: no such part or source, or tensors that do not fit: all of them in one message.
      MissingPackage: 'package:NAME' is not installed; says how it is.
    """
    places, loaded = tree.flatten(shardings), {}
    for prefix, plan, tensors, wanted, fitted in plan_parts(rules, shapes, as_saved):
        by_path: dict[str, list[Move]] = {path: [] for path in wanted}
        for move in plan:
            for path in move.ours:
                by_path[path].append(move)
        for path, leaf in wanted.items():
            loaded[prefix + path] = _place(path, by_path[path], tensors, fitted[path], leaf, places[prefix + path])
    return tree.unflatten(loaded)


def plan_parts(
    rules: Sequence[tuple[str, str]], shapes: tree.Tree, as_saved: bool = False
) -> Iterator[tuple[str, list[Move], Tensors, dict[str, Any], dict[str, Any]]]:
    """For each rule of `load_parts`: the prefix of its part, what is moved where, the tensors, and the shapes of
    the part's parameters, as wanted and with the checkpoint's vocabulary. Only headers are read. Raises alike.
    """
    flat = tree.flatten(shapes)
    for part, source in rules:
        prefix = f"{part}/" if part else ""
        wanted = {path.removeprefix(prefix): leaf for path, leaf in flat.items() if path.startswith(prefix)}
        if not wanted:
            raise CheckpointError(f"load: the model has no part {part!r}; its parts are {shown(_parts(flat))}.")
        tensors, rows, ignored = open_source(source, part)
        plan = moves(rows, wanted)
        if source.startswith("hf:"):
            named = {path for move in plan for path in move.ours}
            wanted = {path: leaf for path, leaf in wanted.items() if path in named or not ADDED.search(path)}
        if as_saved:
            wanted = _with_dtypes(wanted, plan, tensors)
        fitted = {path: _as_saved(path, leaf, plan, tensors) for path, leaf in wanted.items()}
        check(plan, tree.unflatten(fitted), tensors.specs, ignored, f"load: {source}")
        yield prefix, plan, tensors, wanted, fitted


def open_source(source: str, part: str) -> tuple[Tensors, list[Row], tuple[str, ...]]:
    """(tensors, table from `part` down, names to leave aside) of a source."""
    kind, _, path = source.partition(":")
    if kind == "hf":
        folder = HubFolder(Path(path).expanduser())
        return folder.tensors, *_of_part(folder, part)
    if kind == "mmjax":
        workdir = Path(path).expanduser()
        require_own_files(workdir, WEIGHTS, KEPT)
        folder = workdir / WEIGHTS
        if not folder.is_dir():
            raise CheckpointError(f"load: {path} has no {WEIGHTS}/; `mmjax convert` makes it.")
        tensors = SafetensorsFolder(folder)
        prefix = f"{part}/" if part else ""
        rows = [Row(name.removeprefix(prefix), name) for name in tensors.specs if name.startswith(prefix)]
        return tensors, rows, (rf"^(?!{prefix})",) if part else ()
    if kind == "openflamingo":
        return openflamingo.open_parts(Path(path).expanduser(), part)
    if kind == "package":
        return efficientnet.open_file(packaged_encoder(path), part)
    raise CheckpointError(f"load: {source!r} begins with none of 'hf:', 'mmjax:', 'openflamingo:' and 'package:'.")


def _of_part(folder: HubFolder, part: str) -> tuple[list[Row], tuple[str, ...]]:
    """The folder's table for a part of a model, and the names to leave aside."""
    family, rows = folder.family, folder.family.rows(folder.spec)
    if family.part == part or (family.part and family.part.split("/")[0] == part.split("/")[0]):
        return rows, family.ignored + family.aside
    if family.part:
        raise CheckpointError(
            f"load: {folder.path} is {family.part} ({family.model_type}), not {part or 'a whole model'}."
        )
    prefix = f"{part}/"
    inside = [row for row in rows if all(path.startswith(prefix) for path in row.ours)]
    rows = [Row(tuple(path.removeprefix(prefix) for path in row.ours), row.theirs, row.op) for row in inside]
    names = "|".join(re.escape(name).replace(r"\*", r"\d+") for row in rows for name in row.theirs)
    return rows, (rf"^(?!({names})$)",)  # the rest of a whole model is no surplus


def _as_saved(path: str, leaf: Any, plan: Sequence[Move], tensors: Tensors) -> Any:
    """The leaf's shape with the checkpoint's vocabulary, where that is smaller."""
    if path.removeprefix("backbone/") not in VOCABULARY:
        return leaf
    axis = 1 if path.endswith("kernel") else 0
    for move in plan:
        if path in move.ours and all(name in tensors.specs for name in move.theirs):
            size = made_shapes(move, tensors.specs)[move.ours.index(path)][axis]
            if size < leaf.shape[axis]:
                shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
                return jax.ShapeDtypeStruct(shape, leaf.dtype)
    return leaf


def _with_dtypes(wanted: dict[str, Any], plan: Sequence[Move], tensors: Tensors) -> dict[str, Any]:
    """The leaves with the dtypes of the tensors that they are made of."""
    whole = [move for move in plan if all(name in tensors.specs for name in move.theirs)]  # `check` names others
    dtypes = ours_dtypes(whole, tensors.specs)
    return {path: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path, leaf.dtype)) for path, leaf in wanted.items()}


def _place(path: str, plan: Sequence[Move], tensors: Tensors, saved: Any, leaf: Any, sharding: Any) -> jax.Array:
    """One parameter on its devices: each process reads what its devices hold of it."""

    def part(move: Move) -> np.ndarray:
        found = dict(to_ours(move, tensors))[path]
        for axis, (have, want) in enumerate(zip(saved.shape, leaf.shape, strict=True)):
            if have < want:
                # New tokens start as the mean of the old ones: as likely as any, and on their scale.
                mean = found.astype(np.float32).mean(axis, keepdims=True).astype(found.dtype)
                found = np.concatenate([found, np.repeat(mean, want - have, axis)], axis)
        return found

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if plan[0].index is None:
            return np.asarray(part(plan[0])[index], leaf.dtype)
        layers = plan[index[0]]
        out = None
        for i, move in enumerate(layers):
            one = part(move)[index[1:]]
            out = np.empty((len(layers), *one.shape), leaf.dtype) if out is None else out
            out[i] = one
        return out

    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _parts(flat: Any) -> list[str]:
    return sorted(
        {path.split("/")[0] if path.startswith("backbone") else "/".join(path.split("/")[:2]) for path in flat}
    )


def specs_of(shapes: tree.Tree) -> dict[str, Spec]:
    """Shapes and dtypes of a parameter tree, by path."""
    return {path: Spec(tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in tree.flatten(shapes).items()}
