"""Tensors on disk: safetensors folders, read and written one tensor at a time.

Nothing here unpickles: a checkpoint is names, shapes and numbers, and what is anything else is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open

from mmjax.errors import UserError
from mmjax.files import make_folder

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_HALVES = (DTYPES["F16"], DTYPES["BF16"])
_SMALL = ("F4", "F6", "F8")  # how names of dtypes begin that quantised checkpoints have
_LFS = b"version https://git-lfs"
SHARD_BYTES = 5_000_000_000
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class CheckpointError(UserError):
    """A checkpoint that cannot be used: names the file, and what is wrong with it."""


MOST = 20  # names in a message: who reads on for hundreds of them?


def shown(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - MOST:,} more"] if len(names) > MOST else []
    return between.join([*names[:MOST], *more])


class Spec(NamedTuple):
    """Shape and dtype of a tensor, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Protocol):
    """Named tensors that are read one at a time. specs: of all of them."""

    specs: Mapping[str, Spec]

    def read(self, name: str, index: int | slice | None = None) -> np.ndarray:
        """A tensor, or its part [index] alone."""


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The smallest dtype that holds numbers of all of these to the bit: float32 for float16 with bfloat16."""
    found = None
    for dtype in dtypes:
        if found is None or found == dtype:
            found = dtype
        else:
            halves = [np.dtype(np.float32) if d in _HALVES else d for d in (found, dtype)]
            found = np.promote_types(*halves)
    return found


class SafetensorsFolder:
    """The tensors of a safetensors file, or of those files of a folder that `transformers` reads."""

    def __init__(self, path: str | os.PathLike[str], named: str | None = None):
        """Reads the headers.

        Args:
          named: of a folder, the file or index to read instead of the usual ones.

        Raises:
          CheckpointError: missing, damaged, truncated, no safetensors at all, an index that does not fit, or two
            shards with different tensors of one name.
        """
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        self.specs: dict[str, Spec] = {}
        for file in _files(self.path, named):
            for name, spec in _read_header(file).items():
                if name in self._files and not self._same(name, file, spec):
                    raise CheckpointError(f"{file}: its {name!r} differs from that of {self._files[name].name}.")
                self._files[name], self.specs[name] = file, spec

    def read(self, name: str, index: int | slice | None = None) -> np.ndarray:
        return _read(self._files[name], name, index)

    def _same(self, name: str, file: Path, spec: Spec) -> bool:
        """Whether a file has the tensor of that name as the file read before has it."""
        return spec == self.specs[name] and self.read(name).tobytes() == _read(file, name).tobytes()


def _read(file: Path, name: str, index: int | slice | None = None) -> np.ndarray:
    # Opened anew for each tensor: mapped pages of a file that stays open would count as memory in use.
    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name) if index is None else opened.get_slice(name)[index]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {name!r} cannot be read: {error}") from error


def _files(path: Path, named: str | None) -> list[Path]:
    """The files with the tensors of a folder: model.safetensors, else the shards of its index; a warning names the
    others. As `transformers` chooses (5.23, modeling_utils.py, _get_resolved_checkpoint_files)."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder.")
    chosen = named or next((name for name in (SINGLE, INDEX) if (path / name).is_file()), None)
    weights = [f for f in sorted(path.iterdir()) if f.suffix in (".safetensors", ".gguf", *PICKLED)]
    if chosen is None:
        raise CheckpointError(f"{path}: has no {SINGLE} and no {INDEX}.{_remedy(weights)}")
    if not (path / chosen).is_file() or Path(chosen).name != chosen:
        raise CheckpointError(f"{path}: transformers_weights in config.json: no file {chosen!r} in the folder.")
    files = _files_of_index(path / chosen) if chosen.endswith(".index.json") else [path / chosen]
    indices = [f for f in sorted(path.glob("*.safetensors.index.json")) if f.name != chosen]
    if over := [f.name for f in (*weights, *indices) if f not in files]:
        logging.warning("%s: %s is read; passed over, as by transformers: %s.", path, chosen, shown(over))
    return files


def _remedy(weights: Sequence[Path]) -> str:
    """What to do about a folder that has these files with weights, and no model.safetensors."""
    names = [file.name for file in weights]
    if not names:
        return " Nothing else in it holds weights: it may not be downloaded whole."
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        return (
            f" {pickled[0]} is a pickle, which is code and never loaded; save it as safetensors: load the model "
            "with transformers, where you trust its origin, and call its save_pretrained(FOLDER)."
        )
    if "consolidated.safetensors" in names:
        return f" consolidated.safetensors has Mistral's own names; download {SINGLE}, or {INDEX} and its shards."
    if shards := [name for name in names if re.search(r"-\d+-of-\d+\.safetensors$", name)]:
        return f" {shards[0]} is a shard; download the {INDEX} that names all of them."
    return f" There is {shown(names)}: if that is the whole model, rename it to {SINGLE}."


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: is no index of shards, which names the file of each tensor in `weight_map` ({error!r}). "
            "Download it again."
        ) from error
    for name, file in zip(names, files, strict=True):
        # A link is followed, as in the hub's cache; a name that leaves the folder is not.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{index}: {name!r} lies outside the folder.")
        if not file.is_file():
            raise CheckpointError(f"{index}: the shard {name} is missing; download it.")
    return files


def _read_header(file: Path) -> dict[str, Spec]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        with file.open("rb") as opened:
            pointer = opened.read(len(_LFS)) == _LFS
        hint = ". It is a pointer of Git LFS: `git lfs pull` brings the file" if pointer else ""
        raise CheckpointError(f"{file}: is no whole safetensors file: {error}{hint}.") from error
    for name, (_, dtype) in found.items():
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            hint = " It is quantised: take the checkpoint in bfloat16 or float16." * (dtype[:2] in _SMALL)
            raise CheckpointError(f"{file}: {name!r} has dtype {dtype}; known: {known}.{hint}")
    return {name: Spec(shape, DTYPES[dtype]) for name, (shape, dtype) in found.items()}


class SafetensorsWriter:
    """Writes tensors whose shapes are known before, in any order, whole or part by part: none is held.

    with SafetensorsWriter(folder, specs) as writer:
        writer.put(name, array)
        writer.put(stacked_name, part, index)

    The files appear under their names when all is written; after an error, none is left.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        specs: Mapping[str, Spec],
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ):
        """Lays out the shards: `model.safetensors`, or several of at most `shard_bytes` (one tensor at least)
        with an index, as Hugging Face names them."""
        self.folder, self.specs = Path(folder), dict(specs)
        self._shards = _divide(self.specs, shard_bytes)
        self._metadata = dict(metadata or {})
        self._places: dict[str, tuple[Path, int]] = {}  # file and the tensor's first byte in it
        self._left = {name: _bytes(spec) for name, spec in self.specs.items()}

    def __enter__(self) -> SafetensorsWriter:
        make_folder(self.folder)
        for number, names in enumerate(self._shards, 1):
            partial = self.folder / (self._name(number) + ".partial")
            header, size = _header({name: self.specs[name] for name in names}, self._metadata)
            begin = len(header)
            with partial.open("wb") as out:
                out.write(header)
                out.truncate(begin + size)
            for name in names:
                self._places[name] = partial, begin
                begin += _bytes(self.specs[name])
        return self

    def put(self, name: str, array: np.ndarray, index: int | None = None) -> None:
        """Writes a tensor, or its part [index], cast to its dtype.

        Raises:
          UserError: another shape than announced.
        """
        spec = self.specs[name]
        wanted = spec.shape if index is None else spec.shape[1:]
        if tuple(array.shape) != wanted:
            raise ValueError(f"{name}: {array.shape} instead of {wanted}.")
        bits = _contiguous(array.astype(spec.dtype, copy=False).view(f"u{spec.dtype.itemsize}"))
        file, begin = self._places[name]
        with file.open("r+b") as out:
            out.seek(begin + (index or 0) * bits.nbytes)
            out.write(bits.data)
        self._left[name] -= bits.nbytes

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        partials = sorted({file for file, _ in self._places.values()})
        missing = [name for name, left in self._left.items() if left]
        if kind is not None or missing:
            for file in partials:
                file.unlink(missing_ok=True)
            if kind is None:
                raise ValueError(f"{self.folder}: {len(missing)} tensors were not written, first {missing[0]!r}.")
            return
        for old in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.safetensors.index.json")):
            old.unlink()
        for file in partials:
            file.rename(file.with_suffix(""))
        if len(self._shards) > 1:
            total = sum(map(_bytes, self.specs.values()))
            weight_map = {name: file.with_suffix("").name for name, (file, _) in sorted(self._places.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1))

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _contiguous(x: np.ndarray) -> np.ndarray:
    """The array in C order; a transposed matrix is copied tile by tile, which takes a quarter of numpy's time."""
    if x.ndim != 2 or x.flags.c_contiguous:
        return np.ascontiguousarray(x)
    made, tile = np.empty(x.shape, x.dtype), 256
    for i in range(0, x.shape[0], tile):
        for j in range(0, x.shape[1], tile):
            here = slice(i, i + tile), slice(j, j + tile)
            made[here] = x[here]
    return made


def _bytes(spec: Spec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _divide(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    shards, filled = [[]], 0
    for name, spec in specs.items():
        if shards[-1] and filled + _bytes(spec) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _bytes(spec)
    return shards


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The header of a safetensors file, length in front, and how many bytes of tensors follow it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + _bytes(spec)
        entries[name] = {
            "dtype": NAMES[np.dtype(spec.dtype)],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end
