"""Whether a value of a config is of the type that its reader declares: JSON knows no other check."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.errors import UserError

LARGEST = 2**63  # whole numbers are below it, as in arrays


def hints_of(thing: Callable[..., Any]) -> dict[str, Any]:
    """The declared types of what a class or function is called with; {} where they cannot be known."""
    declared = thing
    if inspect.isclass(thing) and not dataclasses.is_dataclass(thing):
        declared = thing.__init__
    try:
        return typing.get_type_hints(declared)
    except (NameError, TypeError, AttributeError):  # a name that is imported for type checkers alone
        return {}


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a value that is not of its declared type; names its path, the value and the type."""
    for key, value in values.items():
        if key in hints and not fits(value, hints[key]):
            hint = hints[key]
            name = hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)
            wanted = name.replace("typing.", "").replace("collections.abc.", "")
            raise UserError(f"{where}.{key}: {reprlib.repr(value)} is not of type {wanted}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, perhaps read from JSON, is of a type: a list is a tuple, a whole number a float."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    kind = origin or hint
    if kind is type(None):
        return value is None
    if kind in (bool, str, os.PathLike):
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if kind is float:
        return isinstance(value, float) or fits(value, int)
    if kind in (list, tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and _items_fit(value, kind, inner)
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items() if inner
        )
    return True  # types of our own, dtypes, callables: no value of a config


def _items_fit(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(one, inner[0]) for one in value) if inner else True
