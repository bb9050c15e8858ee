"""Whether the keys and values of a config are those that its reader declares: JSON knows no other check.

A reader is a class or function with type hints. Of a number `Annotated[float, Range(0, 1)]` says the range, and of
a text `Literal["a", "b"]` the choices.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import inspect
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any

from mmjax.errors import UserError

TINY = 5e-324  # the smallest number above 0
LARGEST = 2**63  # whole numbers are below it, as in arrays


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both of them in it unless it is `open` above."""

    least: float
    most: float = math.inf
    open: bool = False

    def trouble(self, value: float) -> str:
        """What is wrong with a number, '' if it is in the range."""
        if value < self.least:
            return "must be above 0" if self.least == TINY else f"is below {self.least}"
        if self.open and value >= self.most:
            return f"must be below {self.most}"
        return f"is above {self.most}" if value > self.most else ""

    def __str__(self) -> str:
        below = f" {'below' if self.open else 'up to'} {self.most}" if self.most < math.inf else ""
        return (
            f"above 0{below and ','}" if self.least == TINY else f"{self.least} or more{below and ','}"
        ) + below


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Byte = Annotated[int, Range(0, 255)]
Positive = Annotated[float, Range(TINY)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, open=True)]


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the nearest known name, or the list of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."


def check_keys(
    values: Mapping[str, Any], known: Collection[str], required: Collection[str], where: str, owner: str = ""
) -> None:
    """Raises UserError for a key of a section that is not known, with the nearest one, or that is missing.
    owner: what has these keys, for the message."""
    for key in values:
        if key not in known:
            raise UserError(f"{where}: {owner and owner + ' has '}no key {key!r}" + suggest(str(key), known))
    if missing := [key for key in required if key not in values]:
        raise UserError(f"{where}: {owner and owner + ' '}requires {', '.join(missing)}.")


def hints_of(thing: Callable[..., Any]) -> dict[str, Any]:
    """The declared types of what a class or function is called with; {} where they cannot be known."""
    declared = thing
    if inspect.isclass(thing) and not dataclasses.is_dataclass(thing):
        declared = thing.__init__
    try:
        return typing.get_type_hints(declared, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that is imported for type checkers alone
        return {}


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a value that is not of its declared type or range; names its path, the value and what
    it must be."""
    for key, value in values.items():
        if key in hints and (trouble := _trouble(value, hints[key])):
            raise UserError(f"{where}.{key}: {trouble}")


def _trouble(value: Any, hint: Any) -> str:
    """What is wrong with a value, '' if it is of the type."""
    shown, bare = reprlib.repr(value), plain(hint)
    if typing.get_origin(bare) is typing.Literal and value not in (choices := typing.get_args(bare)):
        return f"no {shown}" + suggest(str(value), map(str, choices))
    if not fits(value, hint):
        if isinstance(value, float) and not math.isfinite(value) and fits(0.0, hint):
            return f"{shown} is no finite number."
        name = bare.__name__ if inspect.isclass(bare) and not typing.get_args(bare) else str(bare)
        name = re.sub(r"Annotated\[(\w+), Range\([^)]*\)\]", r"\1", name.replace("typing.", ""))
        return f"{shown} is not of type {name.replace('collections.abc.', '')}."
    for extra in typing.get_args(hint)[1:] if bare is not hint else ():
        if isinstance(extra, Range) and (trouble := extra.trouble(value)):
            return f"{shown} {trouble}."
    kind, inner = typing.get_origin(bare), typing.get_args(bare)
    if kind in (list, tuple, collections.abc.Sequence):
        hints = inner if kind is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        return next(filter(None, map(_trouble, value, hints)), "")
    return ""


def range_of(hint: Any) -> Range | None:
    """The range that a type declares, if it does."""
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)), None)


def plain(hint: Any) -> Any:
    """A type without what Annotated says of it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, perhaps read from JSON, is of a type: a list is a tuple, a whole number a float."""
    hint = plain(hint)
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
        return (isinstance(value, float) and math.isfinite(value)) or fits(value, int)
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
