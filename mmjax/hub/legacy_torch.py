"""Tensors of a file as `torch.save` wrote it before torch 1.6, without unpickling.

Such a file is five pickles (magic number, version, sizes of C's types, the state dict, keys of storages), then per
key an int64 count and that many little-endian numbers (torch/serialization.py, _legacy_save). hub/state_dict.py
reads the pickles' opcodes as data.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmjax.hub.state_dict import Refused, Storage, Tensor, expect, read_value
from mmjax.hub.tensors import CheckpointError, Spec

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
HEADER = 4 << 20  # bytes that the pickles may take, 25,000 tensors; what they make in memory is bounded with them


class LegacyTorchFile:
    """The tensors of such a file, with the interface of Tensors, their axes in any order in memory."""

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the pickles and the places of the storages.

        Raises:
          CheckpointError: missing, truncated, damaged, another format, or more in it than tensors by name.
        """
        self.path = Path(path)
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, tuple[int, list[int]]] = {}  # first byte; axes from the slowest in memory on
        try:
            with self.path.open("rb") as file:
                self._read_header(file, self.path.stat().st_size)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}.") from error
        except Refused as error:
            raise CheckpointError(f"{self.path}: {error}.") from error

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        spec, (begin, axes) = self.specs[name], self._places[name]
        size = math.prod(spec.shape) * spec.dtype.itemsize
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                raw = file.read(size)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {name!r} cannot be read: {error}") from error
        if len(raw) != size:
            raise CheckpointError(f"{self.path}: {name!r} ends early; the file has changed while it was read.")
        array = np.frombuffer(raw, spec.dtype).reshape([spec.shape[axis] for axis in axes])
        array = array.transpose(np.argsort(axes))
        return array if index is None else array[index]

    def _read_header(self, file: BinaryIO, end: int) -> None:
        head = io.BytesIO(file.read(HEADER))
        if head.getvalue().startswith(b"PK\x03\x04"):
            raise Refused("is in torch's zip format, which is not read here; save its tensors as safetensors")
        if read_value(head) != MAGIC or read_value(head) != VERSION:
            raise Refused("is no file of torch.save in its format before torch 1.6")
        read_value(head)
        state, keys = read_value(head), read_value(head)
        expect(isinstance(keys, list), "table of storages that is none")
        if not isinstance(state, dict):
            raise Refused(f"holds a {type(state).__name__}, not a dict of tensors by name")
        tensors = {name: one for name, one in state.items() if isinstance(one, Tensor)}
        for name in state.keys() - tensors.keys():
            raise Refused(f"holds a {type(state[name]).__name__} as {name!r}; in a state dict all are tensors")
        begins = _begins(file, head.tell(), end, keys, [one.storage for one in tensors.values()])
        for name, one in tensors.items():
            dtype = one.storage.dtype
            self.specs[name] = Spec(one.shape, dtype)
            self._places[name] = begins[one.storage.key] + one.offset * dtype.itemsize, _axes(name, one)


def _begins(file: BinaryIO, position: int, end: int, keys: list[Any], storages: list[Storage]) -> dict[str, int]:
    """The first byte of each storage, by key. position: where they begin. keys: in the order of the file."""
    known: dict[str, Storage] = {}
    for one in storages:
        expect(known.setdefault(one.key, one) == one, "storage of two types or sizes")
    begins: dict[str, int] = {}
    for key in keys:
        expect(type(key) is str and key in known and key not in begins, "storage of no tensor")
        file.seek(position)
        count, begins[key] = int.from_bytes(file.read(8), "little"), position + 8
        position += 8 + known[key].count * known[key].dtype.itemsize
        if position > end:
            raise Refused(f"is cut short: it has {end} bytes, and a storage ends at byte {position}")
        expect(count == known[key].count, "storage of another size than announced")
    expect(known.keys() == begins.keys(), "tensor without a storage")
    return begins


def _axes(name: str, tensor: Tensor) -> list[int]:
    """The tensor's axes from the slowest in memory on. Raises Refused if it has gaps or leaves its storage."""
    shape, strides, size = tensor.shape, tensor.strides, 1
    axes = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    for axis in reversed(axes) if math.prod(shape) else ():
        if shape[axis] != 1 and strides[axis] != size:
            raise Refused(f"{name!r} {shape} has strides {strides}, which leave gaps or overlap")
        size *= shape[axis]
    if tensor.offset + math.prod(shape) > tensor.storage.count:
        raise Refused(f"{name!r} {shape} goes beyond its storage of {tensor.storage.count} numbers")
    return axes
