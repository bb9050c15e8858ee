"""GGUF, llama.cpp's file of a model: metadata and tensors, read one tensor at a time and dequantised.

The header is read here, every count checked against the file's size before it is believed; what the blocks of
each quantisation mean is the `gguf` package's knowledge (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import importlib
import math
import os
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmjax.errors import MissingPackage
from mmjax.hub.tensors import DTYPES, MOST, CheckpointError, Spec

VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, where `general.alignment` says nothing else
# Types of metadata: id -> how it is packed; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Types of tensors that hold numbers as they are; all others hold blocks of quantised ones.
_PLAIN = {name: DTYPES[name] for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")}


class _Place(NamedTuple):
    """Where a tensor stands: its GGML type, its first byte, and the bytes of one row along its last axis."""

    kind: int
    begin: int
    row: int


class GGUFFile:
    """The tensors of a GGUF file, with the interface of Tensors, and its `metadata`, key -> value.

    Shapes are those of numpy: GGUF counts axes from the fastest. Quantised tensors are read as float32.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the header.

        Raises:
          CheckpointError: missing, truncated or damaged; or a tensor of a type that is not known.
          MissingPackage: the `gguf` package is not installed.
        """
        self.path = Path(path)
        self._gguf = _package()
        self.metadata: dict[str, Any] = {}
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, _Place] = {}
        try:
            with self.path.open("rb") as file:
                self._read_header(_Header(file, self.path.stat().st_size))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}.") from error
        except _Damaged as error:
            raise CheckpointError(f"{self.path}: is no whole GGUF file: {error}.") from error

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        spec, place = self.specs[name], self._places[name]
        shape, begin = spec.shape, place.begin
        if index is not None:
            shape = shape[1:]
            begin += index * place.row * math.prod(shape[:-1])
        size = place.row * math.prod(shape[:-1])
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                raw = np.frombuffer(file.read(size), np.uint8)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {name!r} cannot be read: {error}") from error
        if len(raw) != size:
            raise CheckpointError(f"{self.path}: {name!r} ends early; the file has changed while it was read.")
        kind = self._gguf.constants.GGMLQuantizationType(place.kind)
        if kind.name in _PLAIN:
            return raw.view(spec.dtype).reshape(shape)
        try:
            found = self._gguf.quants.dequantize(raw.reshape(-1, place.row), kind)
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name!r} is {kind.name}, which cannot be dequantised.") from error
        return found.reshape(shape)

    def _read_header(self, header: _Header) -> None:
        if header.take(4) != b"GGUF":
            raise _Damaged("it does not begin with 'GGUF'")
        version = header.number("I")
        if version not in VERSIONS:
            raise _Damaged(f"version {version}; known: {', '.join(map(str, VERSIONS))}")
        tensors, keys = header.count(8), header.count(12)
        for _ in range(keys):
            key = header.string()
            if key in self.metadata:
                raise _Damaged(f"it has the key {key!r} twice")
            self.metadata[key] = header.value(header.number("I"))
        self._check_whole()
        infos = [self._read_info(header) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _Damaged(f"general.alignment is {alignment!r}")
        start = -(-header.position // alignment) * alignment
        for name, kind, shape, offset in infos:
            self._add(name, kind, shape, start + offset, header.size)

    def _check_whole(self) -> None:
        """Raises CheckpointError for a part of a model that is split over several files."""
        count = self.metadata.get("split.count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            return
        number = self.metadata.get("split.no", 0)
        here = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", self.path.name)
        begin = here[1] if here else "PREFIX"
        # As many names as a message shows: the count is the file's word alone.
        names = [f"{begin}-{i + 1:05}-of-{count:05}.gguf" for i in range(min(count, MOST + 1)) if i != number]
        more = f" and {count - len(names) - 1:,} more" if count > len(names) + 1 else ""
        raise CheckpointError(
            f"{self.path}: is one of {count:,} parts of a model; the others are {', '.join(names)}{more}. Join "
            f"them by llama.cpp, `llama-gguf-split --merge {begin}-00001-of-{count:05}.gguf WHOLE.gguf`, and give "
            "WHOLE.gguf."
        )

    def _read_info(self, header: _Header) -> tuple[str, int, tuple[int, ...], int]:
        """(name, type, shape, offset from where tensors begin) of the next tensor."""
        name, axes = header.string(), header.number("I")
        if axes > 8:
            raise _Damaged(f"{name!r} has {axes} axes")
        shape = tuple(header.number("Q") for _ in range(axes))[::-1]
        return name, header.number("I"), shape, header.number("Q")

    def _add(self, name: str, kind: int, shape: tuple[int, ...], begin: int, end: int) -> None:
        constants = self._gguf.constants
        if name in self.specs:
            raise _Damaged(f"it has the tensor {name!r} twice")
        try:
            known = constants.GGMLQuantizationType(kind)
            block, size = constants.GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise _Damaged(f"{name!r} has the type {kind}, which is not known here") from None
        last = shape[-1] if shape else 1
        if last % block:
            raise _Damaged(f"{name!r} has rows of {last}, {known.name} has blocks of {block}")
        place = _Place(kind, begin, last // block * size)
        if begin + place.row * math.prod(shape[:-1]) > end:
            raise _Damaged(f"{name!r} {shape} goes beyond its end")
        self._places[name] = place
        self.specs[name] = Spec(shape, _PLAIN.get(known.name, np.dtype(np.float32)))


class _Damaged(Exception):
    """The file is not what it says."""


class _Header:
    """A cursor in a file: nothing is read, and no memory taken, for what the file is too short to hold."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.position = file, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise _Damaged(f"it ends within its header, at byte {self.size}")
        self.position += count
        return self.file.read(count)

    def number(self, code: str) -> Any:
        packed = struct.Struct("<" + code)
        return packed.unpack(self.take(packed.size))[0]

    def count(self, smallest: int) -> int:
        """How many of something that takes `smallest` bytes at least."""
        count = self.number("Q")
        if count * smallest > self.size - self.position:
            raise _Damaged(f"it announces {count} entries, more than it has room for")
        return count

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"a text at byte {self.position} is no UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise _Damaged(f"a value at byte {self.position} has the type {kind}")
        inner = self.number("I")
        if inner == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if inner not in _SCALARS:
            raise _Damaged(f"an array at byte {self.position} has the type {inner}")
        size = struct.calcsize("<" + _SCALARS[inner])
        count = self.count(size)
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self.take(count * size)))


def _package() -> ModuleType:
    try:
        for module in ("gguf.constants", "gguf.quants"):
            importlib.import_module(module)
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise MissingPackage("A .gguf file wants the package `gguf`: pip install 'mmjax[gguf]'.") from error
