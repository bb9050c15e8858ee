"""The model card that stands beside exported weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmjax.hub.family import Family
from mmjax.hub.tensors import Spec

AUTO = {
    "backbone": ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),
    "": ("AutoModelForImageTextToText", "AutoProcessor", "image-text-to-text"),
}


def model_card(model: Mapping[str, Any], family: Family, name: str, specs: Mapping[str, Spec]) -> str:
    """README.md of an export: what it is, how it is loaded, what it was made of.

    Args:
      model: the `model` section of the config. specs: the tensors written.
    """
    auto, processor, task = AUTO.get(family.part, ("AutoModel", "AutoImageProcessor", "image-feature-extraction"))
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
            f"from transformers import {auto}, {processor}",
            "",
            f'model = {auto}.from_pretrained("PATH")',
            f'processor = {processor}.from_pretrained("PATH")',
            "```",
            "",
            "Parts, in mmjax's terms:",
            "",
            *(f"* {part}" for part in parts),
            "",
        ]
    )
