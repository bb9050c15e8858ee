"""What a pickled state dict of torch says, read from its opcodes as data: nothing is imported, called or run.

A machine that knows only what such a pickle is made of: a global is a name, and two of them are understood where
they are called, an empty OrderedDict and a tensor's place in its storage.
"""

from __future__ import annotations

import math
import pickletools
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
AXES, MOST = 32, 2**48  # of a tensor: axes, and numbers
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"


class Refused(Exception):
    """What is read is no state dict, or a damaged one."""


class Global(str):
    """The name of a global, and no more."""


class Storage(NamedTuple):
    """Numbers that stand in the file one after the other; tensors are views of them."""

    dtype: np.dtype
    key: str
    count: int


class Tensor(NamedTuple):
    """offset, strides: in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_value(file: BinaryIO) -> Any:
    """What the pickle at the file's position stands for. Raises Refused if that is not what a state dict needs."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    name = "first opcode"
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                stack.append(argument)
            elif name == "GLOBAL":
                stack.append(Global(argument))
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name not in ("PROTO", "STOP"):
                _apply(name, stack, marks)
        return stack.pop()
    except ValueError as error:
        raise Refused(f"its header is damaged, cut short or too long: {error!s:.200}") from error
    except (IndexError, KeyError) as error:
        raise Refused(f"its header is damaged: there is nothing for its {name} to work on") from error


def _apply(name: str, stack: list[Any], marks: list[int]) -> None:
    """An opcode that takes values off the stack, to make one of them or to put them into the one below."""

    def take(count: int) -> list[Any]:
        return [stack.pop() for _ in range(count)][::-1]

    if name in _TUPLES:
        stack.append(tuple(take(_TUPLES[name])))
    elif name == "TUPLE":
        stack.append(tuple(take(len(stack) - marks.pop())))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        stack.append(_called(*take(2)))
    elif name in ("APPEND", "APPENDS"):
        items = take(1 if name == "APPEND" else len(stack) - marks.pop())
        expect(isinstance(stack[-1], list), "damaged list")
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = take(2 if name == "SETITEM" else len(stack) - marks.pop())
        texts = all(type(key) is str for key in items[::2])
        expect(isinstance(stack[-1], dict) and texts, "dict whose keys are no texts")
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name == "BUILD" and isinstance(stack[-2], dict):
        stack.pop()  # a state dict's attribute `_metadata`: versions of modules
    else:
        raise Refused(f"its pickle has the opcode {name}, which is not one of a state dict; nothing was run")


def _called(function: Any, arguments: Any) -> Any:
    """What the two functions that a state dict calls would return."""
    expect(isinstance(function, Global) and isinstance(arguments, tuple), "call of what is no function")
    if function == _DICT and not arguments:
        return {}
    if function != _TENSOR:
        raise Refused(f"its pickle calls {function!s:.80}, which no state dict does; nothing was run")
    expect(len(arguments) >= 4, "damaged tensor")
    storage, offset, shape, strides = arguments[:4]
    expect(isinstance(storage, Storage) and _counts((offset,), shape, strides), "damaged tensor")
    expect(len(shape) == len(strides) <= AXES and math.prod(n or 1 for n in shape) < MOST, "damaged tensor")
    return Tensor(storage, offset, shape, strides)


def _storage(saved: Any) -> Storage:
    expect(isinstance(saved, tuple) and len(saved) == 6 and saved[0] == "storage", "damaged storage")
    _, kind, key, _, count, view = saved
    expect(type(key) is str and _counts((count,)) and view is None, "damaged storage, or a view of one")
    expect(isinstance(kind, Global), "damaged storage")
    if kind not in STORAGES:
        raise Refused(f"has a storage of the type {kind!s:.80}; known: {', '.join(STORAGES)}")
    return Storage(STORAGES[kind], key, count)


def _counts(*several: Any) -> bool:
    """Whether all are tuples of sizes."""
    return all(isinstance(one, tuple) and all(type(n) is int and 0 <= n < MOST for n in one) for one in several)


def expect(right: bool, otherwise: str) -> None:
    """Raises Refused unless it is right."""
    if not right:
        raise Refused(f"its pickle holds a {otherwise}")
