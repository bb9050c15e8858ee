"""LLaVA-1.5: a vision tower, an MLP projector, a language model (transformers, models/llava)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import dino, family
from mmjax.hub.family import Family, Json, complete, config_of, family_of, find_family
from mmjax.hub.table import Row, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS
from mmjax.hub.vision import CLIP_NAMES, UNUSED, linear

# How `transformers` calls the modules of such a model in memory since 4.52.
MODULES = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
RENAMES = (
    # A language model saved without the level, or by 5.10 to 5.22 with it twice.
    (r"^language_model\.(?=(embed_tokens|layers|norm|final_layernorm|decoder)\.)", "language_model.model."),
    (r"^language_model\.model\.model\.", "language_model.model."),
    # transformers 5 saves the towers of CLIP and SigLIP without this level; everything else has it.
    (rf"^vision_tower\.(?={CLIP_NAMES})", "vision_tower.vision_model."),
)


def _spec(c: Json) -> dict[str, Any]:
    text, vision = (find_family(c[key], f"config.json, {key}") for key in ("text_config", "vision_config"))
    encoder = vision.spec(c["vision_config"])
    encoder |= features(
        encoder, c.get("vision_feature_layer", -2), c.get("vision_feature_select_strategy", "default")
    )
    projector = dict(
        type="projectors.mlp.MLP",
        depth=2,
        activation=family.activation(c.get("projector_hidden_act", "gelu")),
        bias=c.get("multimodal_projector_bias", True),
        reduce="none",
        factor=1,
        norm="",
    )
    backbone = text.spec(c["text_config"])
    return dict(
        encoders=dict(image=encoder),
        projectors=dict(image=projector),
        backbone=backbone | dict(tied=bool(c.get("tie_word_embeddings") or backbone["tied"])),
        fusion="splice",
    )


def features(encoder: Json, layer: Any, strategy: str | None) -> dict[str, Any]:
    """What an encoder's spec says of the hidden state that is the feature, which no final norm has seen."""
    if not isinstance(layer, int):
        raise CheckpointError(f"config.json: vision_feature_layer {layer!r}; only one layer is known here.")
    if strategy != "full" and not _drops_class_token(encoder):
        raise CheckpointError(
            f"config.json: vision_feature_select_strategy {strategy!r} drops the first token, which here is not a "
            "class token before all patches; only 'full' is known for this encoder."
        )
    last = layer in (-1, encoder["depth"])
    pool = "all" if strategy == "full" else "none"
    return dict(layer=layer, pool=pool) | (dict(final_norm=False) if last else {})


def strategy_of(encoder: Json) -> str:
    """The vision_feature_select_strategy of an encoder. Raises CheckpointError for features that LLaVA has not."""
    full = complete(encoder)
    pool = full["pool"]
    if full["final_norm"] and full["layer"] in (-1, full["depth"]):
        raise CheckpointError("LLaVA's features have not seen the encoder's final norm; set final_norm=False.")
    if pool == "all" or (pool == "none" and not full["class_token"] and not full["registers"]):
        return "full"
    if pool == "none" and _drops_class_token(encoder):
        return "default"
    raise CheckpointError(f"LLaVA has no name for the features pool={pool!r} of this encoder.")


def _drops_class_token(encoder: Json) -> bool:
    full = complete(encoder)
    return full["class_token"] and not full["registers"]


def _config(spec: Json) -> dict[str, Any]:
    encoder, projector = complete(spec["encoders"]["image"]), complete(spec["projectors"]["image"])
    return dict(
        vision_config=config_of(spec["encoders"]["image"]),
        text_config=config_of(spec["backbone"]),
        vision_feature_layer=encoder["layer"],
        vision_feature_select_strategy=strategy_of(spec["encoders"]["image"]),
        projector_hidden_act=family.ACTIVATIONS[projector["activation"]],
        multimodal_projector_bias=projector["bias"],
        tie_word_embeddings=complete(spec["backbone"])["tied"],
    )


def rows_of(spec: Json, projector: list[Row]) -> list[Row]:
    """The table of a vision tower, a projector and a language model under LLaVA's names for them."""
    encoder, backbone = spec["encoders"]["image"], spec["backbone"]
    return [
        *rows_under("encoders/image/", "vision_tower.", family_of(encoder).rows(encoder)),
        *rows_under("projectors/image/", "multi_modal_projector.", projector),
        *rows_under("backbone/", "language_model.", family_of(backbone).rows(backbone)),
    ]


LLAVA = Family(
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    spec=_spec,
    config=_config,
    rows=lambda spec: rows_of(spec, [*linear("linear_0", "linear_1"), *linear("linear_1", "linear_2")]),
    part="",
    renames=(*RENAMES, *dino.IN_MEMORY),
    modules=MODULES,
    ignored=(r"position_ids$", *BUFFERS),
    aside=(rf"^vision_tower\.{UNUSED}",),
    unwritten=("vision_use_head", "use_mask_token"),
)
