"""How a converted checkpoint begins to train: by its number of parameters, so that one accelerator can hold it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from mmjax import recipes, tree
from mmjax.hub.family import complete

LARGEST = 16e9  # bytes of state up to which all parameters are trained
ACCELERATOR = 80e9  # bytes
ROOM = 0.8 * ACCELERATOR  # the rest is for the encoders' forward pass, fragments and the compiler
# Bytes of a parameter that is trained, of itself, its gradient and Adam's two moments, each float32; and of a
# frozen one in bfloat16.
TRAINED, FROZEN = 16, 2
# LLaVA's recipe for adapters (scripts/v1_5/finetune_lora.sh): the projector's rate is 2e-5.
RANK, ALPHA = 128, 256
LAYERS, PROJECTORS = "^backbone/layers/", "^projectors/"
KEYS = "sft.lora, sft.trainable, sft.optimizer, sft.batch, sft.accumulate, precision, remat"


@dataclasses.dataclass(frozen=True)
class Fit:
    """A config and what was chosen in it. total, trained: numbers of parameters, without and with adapters.
    full: bytes of state where all of them are trained. peak: bytes of an accelerator that `sft` takes, by an
    estimate; 0 where nothing was changed. rows: that it takes at once."""

    raw: dict[str, Any]
    total: int
    trained: int
    full: float
    peak: float = 0.0
    rows: int = 0

    def reason(self) -> str:
        """What was chosen, why, and which keys change it."""
        size = f"{self.total / 1e9:.3g} billion parameters"
        state = f"{self.full / 1e9:.3g} GB of weights, gradients and moments"
        if not self.peak:
            return f"{size}: `sft` trains all of them in float32, {state}. To change it: {KEYS}."
        several = "" if self.peak <= ROOM else " One does not hold that: train on several, `mesh` shards it."
        rows = f"{self.rows} of {self.raw['sft']['batch']} rows at once"
        return (
            f"{size}: all of them trained in float32 would take {state}. `sft` trains {self.trained / 1e9:.2g} "
            "billion: adapters of the language model's layers, and projectors in full; the rest is frozen in "
            f"bfloat16. With {rows} this takes about {self.peak / 1e9:.3g} GB of an accelerator's "
            f"{ACCELERATOR / 1e9:.0f}.{several} To change it: {KEYS}."
        )


def fit(raw: Mapping[str, Any], shapes: tree.Tree, largest: float = LARGEST) -> Fit:
    """The config of a converted workdir with a stage `sft` that its model's size allows.

    Args:
      raw: a config that trains all of the model in float32. shapes: of the model's parameters. largest: bytes of
        state up to which it is left so.
    """
    sizes = {path: math.prod(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    total = sum(sizes.values())
    if TRAINED * total <= largest:
        return Fit(dict(raw), total, total, TRAINED * total)
    projectors = sum(size for path, size in sizes.items() if re.search(PROJECTORS, path))
    adapters = _adapters(shapes)
    trained = projectors + adapters
    state = TRAINED * trained + FROZEN * (total - projectors)
    start = 4 * (total + adapters) + 12 * trained + FROZEN * (total - projectors)  # read as float32, then cast
    row, batch = _row(raw), raw["sft"]["batch"]
    peaks = {rows: max(start, state + rows * row) for rows in (8, 4, 2, 1)}
    fitting = [rows for rows, peak in peaks.items() if peak <= ROOM]
    rows = fitting[0] if fitting else 8  # of several accelerators each takes rows
    stage = recipes.stage(
        raw["sft"]["data"],
        recipes.adamw(2e-4, lr_factors=[*([(PROJECTORS, 0.1)] if projectors else []), (".*", 1.0)]),
        batch=batch,
        steps=raw["sft"]["steps"],
        trainable=[*([PROJECTORS] if projectors else []), "/lora_a$", "/lora_b$"],
        lora=[(LAYERS, dict(rank=RANK, alpha=ALPHA))],
        accumulate=batch // rows,
    )
    precision = raw["precision"] | dict(compute_dtype="bfloat16", frozen_dtype="bfloat16")
    made = dict(raw) | dict(sft=stage, precision=precision, remat=True)
    return Fit(made, total, trained, TRAINED * total, peaks[rows], rows)


def _adapters(shapes: tree.Tree) -> int:
    """Numbers in the adapters of the language model's layers: A [layers, D_in, R] and B [layers, R, D_out]."""
    kernels = [
        leaf.shape
        for path, leaf in tree.flatten(shapes).items()
        if re.search(LAYERS, path) and path.endswith("/kernel")
    ]
    return sum(math.prod(layers) * RANK * (d_in + d_out) for *layers, d_in, d_out in kernels)


def _row(raw: Mapping[str, Any]) -> float:
    """Bytes of the activations of one row in the language model: in bfloat16 what goes into each layer, and what
    the backward pass computes anew of one, its attention in float32 [heads, T, T] a few times over."""
    backbone, length = complete(raw["model"]["backbone"]), raw["sft"]["data"]["length"]
    layers = 2 * length * backbone["width"] * backbone["depth"]
    attention = 16 * backbone["heads"] * length**2
    mlp = 16 * length * backbone["mlp_width"]
    return layers + attention + mlp
