"""PaliGemma and PaliGemma 2: SigLIP, one Linear, Gemma (transformers, models/paligemma; Beyer et al. 2024).

Gemma scales embedded text alone: features enter as they are. (transformers 4 divided them by the root of the
width before it scaled both.) Prompts are prefixes, see the template `paligemma`; they are taken to fit into Gemma
2's sliding window. Positions begin with 1 there, which rotary positions cannot tell from 0.
"""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete, config_of, find_family
from mmjax.hub.llava import MODULES, RENAMES, rows_of
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS
from mmjax.hub.vision import UNUSED, linear

_TEXTS = ("gemma", "gemma2")
# What a config.json means that lacks these sections.
_VISION = dict(
    hidden_size=1152,
    intermediate_size=4096,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)
_TEXT = dict(
    vocab_size=257_152,
    hidden_size=2048,
    intermediate_size=16_384,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
)


def _spec(c: Json) -> dict[str, Any]:
    text = {"model_type": "gemma", **(c.get("text_config") or _TEXT)}
    vision = {"model_type": "siglip_vision_model", **(c.get("vision_config") or _VISION)}
    if text["model_type"] not in _TEXTS or vision["model_type"] != "siglip_vision_model":
        raise CheckpointError(
            f"config.json: PaliGemma of {vision['model_type']} and {text['model_type']} is not known here."
        )
    if c.get("projection_dim", 2048) != text["hidden_size"]:
        raise CheckpointError(
            f"config.json: projection_dim {c.get('projection_dim', 2048)} is not the width {text['hidden_size']}."
        )
    # Which tokens see one another is said by a batch, not by the model.
    text.pop("use_bidirectional_attention", None)
    encoder = find_family(vision, "config.json, vision_config").spec(vision)
    projector = dict(
        type="projectors.mlp.MLP", depth=1, activation="gelu", bias=True, reduce="none", factor=1, norm=""
    )
    return dict(
        encoders=dict(image=encoder | dict(layer=-1, pool="none")),
        projectors=dict(image=projector),
        backbone=find_family(text, "config.json, text_config").spec(text)
        | dict(tied=c.get("tie_word_embeddings", True)),
        fusion="splice",
    )


def _config(spec: Json) -> dict[str, Any]:
    encoder, backbone = spec["encoders"]["image"], spec["backbone"]
    text, full = config_of(backbone), complete(encoder)
    last = full["layer"] in (-1, full["depth"]) and full["final_norm"]
    fits = last and full["pool"] == "none" and not full["class_token"]
    if text["model_type"] not in _TEXTS or not fits:
        raise CheckpointError("PaliGemma is Gemma on SigLIP's normed last layer; the model is something else.")
    return dict(
        vision_config=config_of(encoder) | dict(projection_dim=text["hidden_size"]),
        text_config=text,
        tie_word_embeddings=text["tie_word_embeddings"],
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )


PALIGEMMA = Family(
    model_type="paligemma",
    architecture="PaliGemmaForConditionalGeneration",
    spec=_spec,
    config=_config,
    rows=lambda spec: rows_of(spec, linear("linear_0", "linear")),
    part="",
    renames=RENAMES,
    modules=MODULES,
    ignored=(r"position_ids$", *BUFFERS),
    aside=(rf"^vision_tower\.{UNUSED}",),
    unwritten=("vision_use_head",),
    template="paligemma",
)
