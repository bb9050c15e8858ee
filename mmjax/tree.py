"""Parameter trees by path, and the one rule language that speaks of them.

A path is the keys of a leaf joined by '/': `backbone/layers/attention/query/kernel`. A rule list is ordered
`(regex, value)` pairs; the first regex that `re.search` finds in the path decides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError

Tree = Mapping[str, Any]
Rules = Sequence[tuple[str, Any]]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {path: leaf}, in sorted order."""
    flat = {}
    for key in sorted(tree):
        path = f"{prefix}{key}"
        if isinstance(tree[key], Mapping):
            flat.update(flatten(tree[key], path + "/"))
        else:
            flat[path] = tree[key]
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def map_paths(function: Callable[[str, Any], Any], tree: Tree) -> dict[str, Any]:
    """Applies function(path, leaf) to every leaf of a nested dict."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def match(rules: Rules, paths: Iterable[str], what: str) -> dict[str, Any]:
    """{path: value of the first rule found in it}.

    Raises:
      UserError: a path no rule covers; `what` names the rule list.
    """
    compiled = [(compiled_pattern(pattern, what), value) for pattern, value in rules]
    found, uncovered = {}, []
    for path in paths:
        for pattern, value in compiled:
            if pattern.search(path):
                found[path] = value
                break
        else:
            uncovered.append(path)
    if uncovered:
        raise UserError(
            f"{what}: no rule covers {len(uncovered)} parameters, among them:\n  "
            + "\n  ".join(uncovered[:20])
            + "\nAdd a rule for them, or a last rule ('.*', value)."
        )
    return found


def compiled_pattern(pattern: str, what: str) -> re.Pattern[str]:
    """A regular expression of a rule list. Raises UserError if it is none."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{what}: {pattern!r} is no regular expression: {error}.") from error


def select(patterns: Sequence[str], tree: Tree, what: str) -> dict[str, bool]:
    """{path: whether any of the patterns is found in it}.

    Raises:
      UserError: a pattern that is found in no path.
    """
    paths = list(flatten(tree))
    for pattern in patterns:
        found = compiled_pattern(pattern, what)
        if not any(found.search(path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise UserError(f"{what}: {pattern!r} is found in no parameter path; some paths are {near}.")
    return match([*((p, True) for p in patterns), (".*", False)], paths, what)


def partition(tree: Tree, chosen: Mapping[str, bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree in two of disjoint paths: those chosen, and the rest."""
    flat = flatten(tree)
    return (
        unflatten({p: leaf for p, leaf in flat.items() if chosen[p]}),
        unflatten({p: leaf for p, leaf in flat.items() if not chosen[p]}),
    )


def merge(*trees: Tree) -> dict[str, Any]:
    """The union of trees; on a shared path the later tree wins."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def explain_mismatch(wanted: Tree, given: Tree) -> str:
    """What keeps `given` from standing in for `wanted`, a line a leaf; '' if nothing does."""
    want, have = flatten(wanted), flatten(given)
    lines = [f"  missing   {p} {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"  surplus   {p} {tuple(have[p].shape)}" for p in have if p not in want]
    lines += [
        f"  shape     {p} is {tuple(have[p].shape)}, the model wants {tuple(want[p].shape)}"
        for p in want
        if p in have and tuple(want[p].shape) != tuple(have[p].shape)
    ]
    shown = lines[:40] + ([f"  ... and {len(lines) - 40} more"] if len(lines) > 40 else [])
    return "\n".join(shown)


def count(tree: Tree) -> int:
    """Number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())
