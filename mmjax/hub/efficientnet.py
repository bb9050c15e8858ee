"""EfficientNet-Lite0 with the weights of its training on ImageNet, for `load`: a package brings them.

    c.model.encoders.image = dict(
        type='encoders.efficientnet.EfficientNet', variant='lite0', size=128, layer=-1, pool='none')
    c.load = [('encoders/image', 'package:efficientnet-lite0'), ...]

The names are those of EfficientNet-PyTorch's state dict. Its classifier of 1000 classes is left aside.
"""

from __future__ import annotations

import re
from pathlib import Path

from mmjax.hub.legacy_torch import LegacyTorchFile
from mmjax.hub.table import Row, each, rows_under
from mmjax.hub.tensors import CheckpointError, Tensors

PART = "encoders/image"
IGNORED = (r"\.num_batches_tracked$", r"^_fc\.")

_CONVOLUTION = each(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
_POINTWISE = each(lambda w: w.reshape(w.shape[:2]).T, lambda w: w.T.reshape(*w.shape[::-1], 1, 1))
_DEPTHWISE = each(
    lambda w: w.reshape(w.shape[0], *w.shape[2:]).transpose(1, 2, 0),
    lambda w: w.transpose(2, 0, 1).reshape(w.shape[2], 1, *w.shape[:2]),
)


def _norm(ours: str, theirs: str) -> list[Row]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return [Row(f"{ours}/{mine}", f"{theirs}.{other}") for mine, other in names.items()]


def rows(blocks: int) -> list[Row]:
    """The encoder's table, of that many blocks."""
    block = [
        Row("expand/kernel", "_expand_conv.weight", _POINTWISE),
        *_norm("expand_norm", "_bn0"),
        Row("depthwise/kernel", "_depthwise_conv.weight", _DEPTHWISE),
        *_norm("depthwise_norm", "_bn1"),
        Row("project/kernel", "_project_conv.weight", _POINTWISE),
        *_norm("project_norm", "_bn2"),
    ]
    return [
        Row("stem/kernel", "_conv_stem.weight", _CONVOLUTION),
        *_norm("stem_norm", "_bn0"),
        *[row for i in range(blocks) for row in rows_under(f"block_{i}/", f"_blocks.{i}.", block)],
        Row("head/kernel", "_conv_head.weight", _POINTWISE),
        *_norm("head_norm", "_bn1"),
    ]


def open_file(path: Path, part: str) -> tuple[Tensors, list[Row], tuple[str, ...]]:
    """(tensors, table, names to leave aside).

    Raises:
      CheckpointError: a file that cannot be read, or another part than an encoder.
    """
    if not part.startswith("encoders/"):
        raise CheckpointError(f"load: EfficientNet-Lite0 is {PART}, not {part or 'a whole model'}.")
    tensors = LegacyTorchFile(path)
    found = [re.match(r"_blocks\.(\d+)\.", name) for name in tensors.specs]
    return tensors, rows(1 + max((int(one[1]) for one in found if one), default=-1)), IGNORED
