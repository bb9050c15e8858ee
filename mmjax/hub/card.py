"""The model card that stands beside exported weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.hub.family import Family
from mmjax.hub.tensors import Spec

AUTO = {
    "backbone": ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),
    "": ("AutoModelForImageTextToText", "AutoProcessor", "image-text-to-text"),
}


_ENCODER = ("AutoModel", "AutoImageProcessor", "image-feature-extraction")
_UNMAPPED = ("blip_2_vision_model",)  # families whose class AutoModel does not find
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
_IMAGES = ("processor_config.json", "preprocessor_config.json")
# Kinds of files, one of each, that what reads texts and pictures is made from.
_NEEDED = {
    "AutoTokenizer": (_TOKENIZER,),
    "AutoImageProcessor": (_IMAGES,),
    "AutoProcessor": (_TOKENIZER, _IMAGES),
}


def model_card(
    model: Mapping[str, Any], family: Family, name: str, specs: Mapping[str, Spec], folder: Path
) -> str:
    """README.md of an export: what it is, how it is loaded, what it was made of.

    Args:
      model: the `model` section of the config. specs: the tensors written. folder: has the export's other files.
    """
    auto, processor, task = AUTO.get(family.part, _ENCODER)
    auto = family.architecture if family.model_type in _UNMAPPED else auto
    whole = all(any((folder / file).exists() for file in files) for files in _NEEDED[processor])
    imports = [auto, processor] if whole else [auto]
    count = sum(math.prod(spec.shape) for spec in specs.values())
    parts = [
        *(
            f"{kind}/{n}: `{part['type']}`"
            for kind in ("encoders", "projectors")
            for n, part in model[kind].items()
        ),
        f"backbone: `{model['backbone']['type']}`",
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {task}",
            "tags: [mmjax]",
            "---",
            f"# {name}",
            "",
            f"A {family.architecture} of {count:,} parameters, trained with mmjax and written by `mmjax convert`.",
            "",
            "```python",
            f"from transformers import {', '.join(imports)}",
            "",
            f'model = {auto}.from_pretrained("PATH")',
            *([f'processor = {processor}.from_pretrained("PATH")'] if whole else ()),
            "```",
            "",
            "Parts, in mmjax's terms:",
            "",
            *(f"* {part}" for part in parts),
            "",
        ]
    )
