"""Checkpoints of Hugging Face with quantised weights: known by config.json or by their tensors, and refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mmjax.hub.family import Json
from mmjax.hub.tensors import CheckpointError, shown

# Tensors that GPTQ, AWQ, bitsandbytes, compressed-tensors and float8 checkpoints have.
_TENSORS = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|(weight|input)_scale(_inv|_2)?|weight_packed|SCB|(nested_)?absmax|quant_map)$"
    r"|\.quant_state\."
)
_REMEDY = (
    "Convert the checkpoint in bfloat16 or float16 that it was made from; or load this one with transformers, "
    "call dequantize() where its method has that, and save_pretrained(FOLDER)."
)


def check_config(config: Json, file: Path) -> None:
    """Raises CheckpointError for a config.json, in `file`, of quantised weights."""
    text = config.get("text_config")
    said = config.get("quantization_config")
    if not said and isinstance(text, dict):
        said = text.get("quantization_config")
    if said:
        method = said.get("quant_method") if isinstance(said, dict) else None
        raise CheckpointError(
            f"{file}: quantization_config: the weights are quantised ({method or 'no method is named'}), which is "
            f"not known here. {_REMEDY}"
        )


def check_names(names: Iterable[str], folder: Path) -> None:
    """Raises CheckpointError for a folder with tensors of these names, if they are of quantised weights."""
    if found := sorted(name for name in names if _TENSORS.search(name)):
        raise CheckpointError(f"{folder}: quantised weights are not known here: {shown(found)}. {_REMEDY}")
