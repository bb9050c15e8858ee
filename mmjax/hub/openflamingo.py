"""OpenFlamingo's trained parts, for `load`: its perceiver resampler and its gated cross-attention blocks.

    c.model.projectors.image = dict(
        type='projectors.resampler.Perceiver', latents=64, depth=6, heads=8, head_dim=64, mlp_ratio=4,
        norm='layer', norm_eps=1e-5, activation='gelu', project=False)
    c.model.backbone.xattn = dict(
        every=EVERY, first=EVERY - 1, heads=8, head_dim=64, mlp_width=4 * WIDTH, activation='gelu', gated=False,
        qkv_bias=False, out_bias=False, mlp_bias=False, norm='layer', norm_eps=1e-5)
    c.load = [..., ('projectors/image', 'openflamingo:FOLDER'), ('backbone/xattn', 'openflamingo:FOLDER')]

FOLDER holds safetensors under the names of open_flamingo's state dict. Published checkpoints are pickles, which
are code and never loaded here; what else they hold (embeddings of the language model) is left aside.
"""

from __future__ import annotations

import re
from pathlib import Path

from absl import logging

from mmjax.hub.family import renamed
from mmjax.hub.folder import Renamed
from mmjax.hub.table import Op, Row, T, reshape, rows_under
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, Tensors
from mmjax.hub.vision import norm

# A block is saved beside the layer it stands before, or in a list of its own.
_RENAMES = (
    (r"^module\.", ""),
    (r"^lang_encoder\.(?=gated_cross_attn_layers\.)", ""),
    (r"^lang_encoder\.(?:\w+\.)+?(\d+)\.gated_cross_attn_layer\.", r"gated_cross_attn_layers.\1."),
)


def _halves(xs):
    (kv,) = xs
    return kv[: len(kv) // 2].T, kv[len(kv) // 2 :].T


_KEYS_AND_VALUES = Op(_halves, lambda xs: (xs[0].__array_namespace__().concatenate([x.T for x in xs]),))


def _attention(ours: str) -> list[Row]:
    return [
        Row(f"{ours}/query/kernel", "to_q.weight", T),
        Row((f"{ours}/key/kernel", f"{ours}/value/kernel"), "to_kv.weight", _KEYS_AND_VALUES),
        Row(f"{ours}/out/kernel", "to_out.weight", T),
    ]


def _feed_forward(ours_norm: str, ours: str) -> list[Row]:
    return [
        *norm(ours_norm, "0"),
        Row(f"{ours}/up/kernel", "1.weight", T),
        Row(f"{ours}/down/kernel", "3.weight", T),
    ]


def perceiver_rows(depth: int) -> list[Row]:
    """The resampler's table, paths from its own down."""
    rows = [Row("latents", "latents"), *norm("norm_out", "norm")]
    for i in range(depth):
        attention = [
            *_attention(f"attention_{i}"),
            *norm(f"feature_norm_{i}", "norm_media"),
            *norm(f"latent_norm_{i}", "norm_latents"),
        ]
        rows += rows_under("", f"layers.{i}.0.", attention)
        rows += rows_under("", f"layers.{i}.1.", _feed_forward(f"mlp_norm_{i}", f"mlp_{i}"))
    return rows_under("", "perceiver.", rows)


def block_rows() -> list[Row]:
    """The gated cross-attention blocks' table, paths from their stack down, blocks counted from 0."""
    gate = reshape((), (1,))
    rows = [
        *rows_under("", "attn.", [*_attention("attention"), *norm("attention_norm", "norm")]),
        *rows_under("", "ff.", _feed_forward("mlp_norm", "mlp")),
        Row("attention_gate", "attn_gate", gate),
        Row("mlp_gate", "ff_gate", gate),
    ]
    return rows_under("", "gated_cross_attn_layers.*.", rows)


def open_parts(path: Path, part: str) -> tuple[Tensors, list[Row], tuple[str, ...]]:
    """(tensors, table from `part` down, names to leave aside).

    Raises:
      CheckpointError: tensors that cannot be read, or another part than these two.
    """
    folder = SafetensorsFolder(path)
    names = _named(folder, _RENAMES).specs
    if part.startswith("projectors/"):
        depth = len(_numbers(r"^perceiver\.layers\.(\d+)\.", names))
        return _named(folder, _RENAMES), perceiver_rows(depth), (r"^(?!perceiver\.)",)
    if part != "backbone/xattn":
        raise CheckpointError(f"load: OpenFlamingo has 'projectors/image' and 'backbone/xattn', but no {part!r}.")
    layers = _numbers(r"^gated_cross_attn_layers\.(\d+)\.", names)
    if layers:
        every, first = layers[0] + 1, layers[0]
        if layers != list(range(first, layers[-1] + 1, every)):
            raise CheckpointError(f"{path}: its blocks stand before the layers {layers}, at no one distance.")
        logging.info("%s: blocks stand as xattn.every=%d, xattn.first=%d has them.", path, every, first)
    renumber = tuple(
        (rf"^gated_cross_attn_layers\.{layer}\.", f"gated_cross_attn_layers.{i}.")
        for i, layer in enumerate(layers)
    )
    return _named(folder, _RENAMES + renumber), block_rows(), (r"^(?!gated_cross_attn_layers\.)",)


def _named(folder: Tensors, renames: tuple[tuple[str, str], ...]) -> Renamed:
    return Renamed(folder, lambda name: renamed(name, renames))


def _numbers(pattern: str, names) -> list[int]:
    return sorted({int(found[1]) for name in names if (found := re.search(pattern, name))})
