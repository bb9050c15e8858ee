"""Name tables: which of a checkpoint's tensors stands for which parameter, and how the one becomes the other.

A family's table is a list of `Row(ours, theirs, op)`. Ours are parameter paths, theirs tensor names. A `*` in
theirs counts the layers of a stack, whose parameters have a leading axis for them here. An op works on the
tensors of one layer, both ways, and without arithmetic: a round trip gives the same bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax import tree
from mmjax.hub.tensors import CheckpointError, Spec, Tensors, common_dtype, shown

Arrays = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """to_ours: a row's tensors to its parameters; to_theirs: back. Both use methods of arrays alone."""

    to_ours: Callable[[Arrays], Arrays]
    to_theirs: Callable[[Arrays], Arrays]


def each(to_ours: Callable[[Any], Any], to_theirs: Callable[[Any], Any]) -> Op:
    """One tensor, one parameter."""
    return Op(lambda xs: (to_ours(xs[0]),), lambda xs: (to_theirs(xs[0]),))


KEEP = each(lambda x: x, lambda x: x)
T = each(lambda w: w.T, lambda w: w.T)  # torch's Linear holds [D_out, D_in]


def _join(xs: Arrays) -> Any:
    return xs[0].__array_namespace__().concatenate(xs)


def reshape(ours: Sequence[int], theirs: Sequence[int]) -> Op:
    """Another shape of the same numbers."""
    return each(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


def patches(size: int, channels: int = 3) -> Op:
    """A patch convolution [D, C, P, P] and a linear map of flattened patches [P * P * C, D]."""
    return each(
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
        lambda w: w.reshape(size, size, channels, -1).transpose(3, 2, 0, 1),
    )


def fused(*sizes: int, then: Op = T) -> Op:
    """One tensor that holds several along its first axis, each then by `then`: fused projections."""
    ends = np.cumsum(sizes)

    def to_ours(xs):
        (x,) = xs
        return tuple(then.to_ours((x[end - size : end],))[0] for size, end in zip(sizes, ends, strict=True))

    return Op(to_ours, lambda xs: (_join(tuple(then.to_theirs((x,))[0] for x in xs)),))


def stack(count: int, then: Op = T) -> Op:
    """`count` tensors, each by `then`, that are one parameter with a leading axis."""

    def to_ours(xs):
        (first,) = xs[:1]
        return (first.__array_namespace__().stack([then.to_ours((x,))[0] for x in xs]),)

    return Op(to_ours, lambda xs: tuple(then.to_theirs((xs[0][i],))[0] for i in range(count)))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table; `ours` and `theirs` are one name each, or several that an op splits or joins, and are
    kept as tuples."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    op: Op = KEEP

    def __post_init__(self):
        for side in ("ours", "theirs"):
            names = getattr(self, side)
            object.__setattr__(self, side, (names,) if isinstance(names, str) else names)


def rows_under(ours: str, theirs: str, rows: Iterable[Row]) -> list[Row]:
    """A table one level down: paths prefixed by `ours`, names by `theirs`."""

    def prefix(with_: str, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(with_ + name for name in names)

    return [Row(prefix(ours, row.ours), prefix(theirs, row.theirs), row.op) for row in rows]


@dataclasses.dataclass(frozen=True)
class Move:
    """One application of a row: parameters `ours`, of a stack the part [index], and tensors `theirs`."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    index: int | None
    op: Op


def moves(rows: Sequence[Row], shapes: tree.Tree) -> list[Move]:
    """The table applied to a model: a move for each layer of each row that the model has parameters for.

    Raises:
      CheckpointError: a row of which the model has only a part.
    """
    flat = tree.flatten(shapes)
    found = []
    for row in rows:
        ours, theirs = row.ours, row.theirs
        there = [path in flat for path in ours]
        if not any(there):
            continue
        if not all(there):
            raise CheckpointError(f"the model has only some of {shown(ours)}, which {theirs[0]} stands for.")
        if not any("*" in name for name in theirs):
            found.append(Move(ours, theirs, None, row.op))
            continue
        for i in range(flat[ours[0]].shape[0]):
            found.append(Move(ours, tuple(name.replace("*", str(i)) for name in theirs), i, row.op))
    return found


def check(
    plan: Sequence[Move], shapes: tree.Tree, specs: Mapping[str, Spec], ignored: Sequence[str], where: str
) -> None:
    """Compares all names and shapes before a tensor is read.

    Args:
      shapes: the parameters that are wanted. specs: the tensors that there are.
      ignored: regexes of tensors that no parameter need stand for.

    Raises:
      CheckpointError: one message with the missing, surplus and mis-shaped tensors.
    """
    flat = tree.flatten(shapes)
    named = {path for move in plan for path in move.ours}
    used = {name for move in plan for name in move.theirs}
    lines = [
        f"  missing   {name}, for {move.ours[0]}" for move in plan for name in move.theirs if name not in specs
    ]
    lines += [f"  missing   {path}: the family's table has no tensor for it" for path in flat if path not in named]
    skip = re.compile("|".join(ignored) or r"\b\B")
    lines += [
        f"  surplus   {name} {specs[name].shape}" for name in specs if name not in used and not skip.search(name)
    ]
    for move in plan:
        if all(name in specs for name in move.theirs):
            lines += _misshaped(move, flat, specs)
    if lines:
        raise CheckpointError(f"{where} does not fit the model:\n" + shown(lines, "\n"))


def theirs_specs(plan: Sequence[Move], specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Shapes and dtypes of the tensors that parameters of `specs` become."""
    found = {}
    for move in plan:
        ours = [_part(specs[path], move.index) for path in move.ours]
        shapes = jax.eval_shape(lambda xs, op=move.op: op.to_theirs(xs), tuple(map(_abstract, ours)))
        dtype = common_dtype(spec.dtype for spec in ours)
        found |= {name: Spec(tuple(s.shape), dtype) for name, s in zip(move.theirs, shapes, strict=True)}
    return found


def ours_dtypes(plan: Sequence[Move], specs: Mapping[str, Spec]) -> dict[str, np.dtype]:
    """Dtypes of the parameters that tensors of `specs` become; of a stack, the one that holds all its layers."""
    found: dict[str, list[np.dtype]] = {}
    for move in plan:
        for path in move.ours:
            found.setdefault(path, []).extend(specs[name].dtype for name in move.theirs)
    return {path: common_dtype(dtypes) for path, dtypes in found.items()}


def to_ours(move: Move, tensors: Tensors) -> list[tuple[str, np.ndarray]]:
    """Reads a move's tensors -> (path, parameter, or its part [index])."""
    arrays = _alike(tensors.read(name) for name in move.theirs)
    return list(zip(move.ours, move.op.to_ours(arrays), strict=True))


def to_theirs(move: Move, parameters: Tensors) -> list[tuple[str, np.ndarray]]:
    """Reads a move's parameters -> (name, tensor)."""
    arrays = _alike(parameters.read(path, move.index) for path in move.ours)
    return list(zip(move.theirs, move.op.to_theirs(arrays), strict=True))


def _alike(arrays: Iterable[np.ndarray]) -> Arrays:
    """The arrays in their common dtype: an op may join them."""
    arrays = tuple(arrays)
    dtype = common_dtype(array.dtype for array in arrays)
    return tuple(array.astype(dtype, copy=False) for array in arrays)


def made_shapes(move: Move, specs: Mapping[str, Spec]) -> list[tuple[int, ...]]:
    """Shapes of the parameters that a move's tensors become. Raises what the op raises if they cannot."""
    made = jax.eval_shape(move.op.to_ours, tuple(_abstract(specs[name]) for name in move.theirs))
    return [tuple(one.shape) for one in made]


def _misshaped(move: Move, flat: Mapping[str, Any], specs: Mapping[str, Spec]) -> list[str]:
    names = ", ".join(f"{name} {specs[name].shape}" for name in move.theirs)
    try:
        made = made_shapes(move, specs)
    except (TypeError, ValueError, IndexError):
        return [f"  shape     {names} cannot become {', '.join(move.ours)}"]
    return [
        f"  shape     {names} gives {shape}, {path} is {wanted}"
        for path, shape in zip(move.ours, made, strict=True)
        if shape != (wanted := tuple(flat[path].shape[0 if move.index is None else 1 :]))
    ]


def _abstract(spec: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, np.float32)  # shapes matter here, and JAX knows not every dtype


def _part(spec: Spec, index: int | None) -> Spec:
    return spec if index is None else Spec(spec.shape[1:], spec.dtype)
