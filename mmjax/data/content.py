"""What a sample teaches as one number: a run that resumes notices data that were edited to the same lengths.

A picture counts by its encoded size and some of its bytes, not by its name or time: folders may be moved.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np

from mmjax.data.encoded import Encoded
from mmjax.types import Sample

BLOCK = 512  # bytes of a picture that are read at its beginning, middle and end


def digest(sample: Sample, encoded: Encoded) -> int:
    """64 bits of what a row shows of a sample: its tokens, what they weigh as targets, its pictures and their
    places, from which the slots follow."""
    arrays = (encoded.tokens, encoded.loss_weight, encoded.pictures)
    shown = [np.ascontiguousarray(array).tobytes() for array in arrays]
    shown += map(_picture, sample.images[: len(encoded.pictures)])
    return int.from_bytes(hashlib.sha256(b"".join(shown)).digest()[:8], "little")


def _picture(picture: bytes | os.PathLike[str] | str) -> bytes:
    """The size of an encoded picture and blocks of it; b'' if it cannot be read, which its decoding will tell."""
    if isinstance(picture, bytes):
        size = len(picture)
        return b"%d:" % size + b"".join(picture[begin : begin + BLOCK] for begin in _blocks(size))
    try:
        file = os.open(picture, os.O_RDONLY)
    except OSError:
        return b""
    try:
        size = os.fstat(file).st_size
        return b"%d:" % size + b"".join(os.pread(file, BLOCK, begin) for begin in _blocks(size))
    except OSError:
        return b""
    finally:
        os.close(file)


def _blocks(size: int) -> list[int]:
    """Where the blocks of a picture begin; a small one is read whole."""
    last = size - BLOCK
    return [0, last // 2, last] if last > 2 * BLOCK else list(range(0, max(size, 1), BLOCK))
