"""LLaVA-1.5: a vision tower, an MLP projector, a language model (transformers, models/llava)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete, config_of, family_of, find_family
from mmjax.hub.table import Row, T, rows_under


def _spec(c: Json) -> dict[str, Any]:
    text, vision = (find_family(c[key], f"config.json, {key}") for key in ("text_config", "vision_config"))
    features = dict(
        layer=c.get("vision_feature_layer", -2),
        pool="all" if c.get("vision_feature_select_strategy") == "full" else "none",
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
    return dict(
        encoders=dict(image=vision.spec(c["vision_config"]) | features),
        projectors=dict(image=projector),
        backbone=text.spec(c["text_config"]),
        fusion="splice",
    )


def _config(spec: Json) -> dict[str, Any]:
    encoder, projector = complete(spec["encoders"]["image"]), complete(spec["projectors"]["image"])
    return dict(
        vision_config=config_of(spec["encoders"]["image"]),
        text_config=config_of(spec["backbone"]),
        vision_feature_layer=encoder["layer"],
        vision_feature_select_strategy="full" if encoder["pool"] == "all" else "default",
        projector_hidden_act=family.ACTIVATIONS[projector["activation"]],
        multimodal_projector_bias=projector["bias"],
    )


def _rows(spec: Json) -> list[Row]:
    encoder, backbone = spec["encoders"]["image"], spec["backbone"]
    projector = [
        Row(f"linear_{i}/{ours}", f"linear_{i + 1}.{theirs}", *op)
        for i in range(2)
        for ours, theirs, *op in (("kernel", "weight", T), ("bias", "bias"))
    ]
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
    rows=_rows,
    part="",
    # transformers 5.23 saves a CLIP tower without this level; everything else has it.
    renames=((r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),),
    modules=(
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head", "lm_head"),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    ),
    ignored=(r"position_ids$", r"rotary_emb\.inv_freq$", r"^language_model\.lm_head\.weight$"),
)
