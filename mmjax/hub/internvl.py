"""InternVL: InternViT on dynamic tiles, a pixel shuffle with a normed MLP, a language model (transformers,
models/internvl)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete, config_of, family_of, find_family
from mmjax.hub.image_processor import ImageProcessor, encoder_side
from mmjax.hub.llava import LLAVA, MODULES, RENAMES
from mmjax.hub.table import Row, T, patches, reshape, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import attention
from mmjax.hub.vision import norm, side

_VISION_DEFAULTS = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    attention_bias=False,
    use_qk_norm=False,
    intermediate_size=4096,
    hidden_act="gelu",
    norm_type="layer_norm",
    layer_norm_eps=1e-6,
    image_size=448,
    patch_size=14,
    use_absolute_position_embeddings=True,
    layer_scale_init_value=0.1,
    use_mean_pooling=True,
)
_KEYS = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "qkv_bias": "attention_bias",
    "norm_eps": "layer_norm_eps",
    "layer_scale": "layer_scale_init_value",
}
_NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
_QK_EPS = 1e-6  # of the reference's norm of queries and keys, whatever the config says


def _vision_spec(c: Json) -> dict[str, Any]:
    c = {**_VISION_DEFAULTS, **c}
    if c["norm_type"] not in _NORMS or not c["use_absolute_position_embeddings"]:
        raise CheckpointError("config.json: InternViT with other norms or without positions is not known here.")
    if not c["use_mean_pooling"] and c["norm_type"] != "layer_norm":
        raise CheckpointError(
            "config.json: norm_type 'rms_norm' wants use_mean_pooling: the last norm is another."
        )
    if c["use_qk_norm"] and c["layer_norm_eps"] != _QK_EPS:
        raise CheckpointError(f"config.json: use_qk_norm wants layer_norm_eps {_QK_EPS}.")
    if not c["layer_scale_init_value"]:
        raise CheckpointError("config.json: layer_scale_init_value 0 is not known here.")
    return dict(
        type="encoders.vit.ViT",
        variant="internvit",
        **{ours: c[theirs] for ours, theirs in _KEYS.items()},
        size=side("image_size", c["image_size"]),
        patch=side("patch_size", c["patch_size"]),
        kv_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        activation=family.activation(c["hidden_act"]),
        norm=_NORMS[c["norm_type"]],
        qk_norm="rms" if c["use_qk_norm"] else "",
        final_norm=not c["use_mean_pooling"],
        layer=-1,
    )


def _vision_config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in _KEYS.items()} | dict(
        image_size=[full["size"]] * 2,
        patch_size=[full["patch"]] * 2,
        hidden_act=family.ACTIVATIONS[full["activation"]],
        norm_type={ours: theirs for theirs, ours in _NORMS.items()}[full["norm"]],
        use_qk_norm=bool(full["qk_norm"]),
        use_mean_pooling=not full["final_norm"],
    )


def _vision_rows(spec: Json) -> list[Row]:
    full = complete(spec)
    positions = (full["size"] // full["patch"]) ** 2 + 1
    layer = [
        *attention(theirs="attention.", out="projection_layer"),
        Row("attention/query_norm/scale", "attention.q_norm.weight"),
        Row("attention/key_norm/scale", "attention.k_norm.weight"),
        Row("attention_layer_scale", "lambda_1"),
        Row("mlp_layer_scale", "lambda_2"),
        *norm("attention_norm", "layernorm_before"),
        *norm("mlp_norm", "layernorm_after"),
        *_linear("mlp/up", "mlp.fc1"),
        *_linear("mlp/down", "mlp.fc2"),
    ]
    table = reshape((positions, full["width"]), (1, positions, full["width"]))
    return [
        Row("stem/embed/kernel", "embeddings.patch_embeddings.projection.weight", patches(full["patch"])),
        Row("stem/embed/bias", "embeddings.patch_embeddings.projection.bias"),
        Row("class_token", "embeddings.cls_token"),
        Row("position_embedding", "embeddings.position_embeddings", table),
        *rows_under("layers/", "encoder.layer.*.", layer),
        *norm("norm_out", "layernorm"),
    ]


def _linear(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", T), Row(f"{ours}/bias", f"{theirs}.bias")]


def _spec(c: Json) -> dict[str, Any]:
    text = find_family(c["text_config"], "config.json, text_config").spec(c["text_config"])
    layer, encoder = c.get("vision_feature_layer", -1), _vision_spec(c["vision_config"])
    strategy, ratio = c.get("vision_feature_select_strategy", "default"), c.get("downsample_ratio", 0.5)
    if not isinstance(layer, int) or strategy != "default" or ratio <= 0 or (1 / ratio) % 1:
        raise CheckpointError(
            f"config.json: vision_feature_layer {layer!r}, vision_feature_select_strategy {strategy!r} and "
            f"downsample_ratio {ratio!r}; known are one layer, 'default', and one part of a whole number."
        )
    projector = dict(
        type="projectors.mlp.MLP",
        depth=2,
        activation=family.activation(c.get("projector_hidden_act", "gelu")),
        bias=True,
        reduce="pixel_shuffle",
        factor=int(1 / ratio),
        norm="",
        norm_in="layer",
    )
    return dict(
        encoders=dict(image=encoder | dict(layer=layer)),
        projectors=dict(image=projector),
        backbone=text | dict(tied=c.get("tie_word_embeddings", True)),
        fusion="splice",
    )


def _config(spec: Json) -> dict[str, Any]:
    encoder, projector = spec["encoders"]["image"], spec["projectors"]["image"]
    return dict(
        vision_config=config_of(encoder),
        text_config=config_of(spec["backbone"]),
        vision_feature_layer=encoder["layer"],
        vision_feature_select_strategy="default",
        downsample_ratio=1 / projector["factor"],
        projector_hidden_act=family.ACTIVATIONS[projector["activation"]],
        tie_word_embeddings=complete(spec["backbone"])["tied"],
    )


def _rows(spec: Json) -> list[Row]:
    encoder, backbone = spec["encoders"]["image"], spec["backbone"]
    projector = [
        *norm("norm_in", "layer_norm"),
        *_linear("linear_0", "linear_1"),
        *_linear("linear_1", "linear_2"),
    ]
    return [
        *rows_under("encoders/image/", "vision_tower.", _vision_rows(encoder)),
        *rows_under("projectors/image/", "multi_modal_projector.", projector),
        *rows_under("backbone/", "language_model.", family_of(backbone).rows(backbone)),
    ]


def _views(c: Json, p: ImageProcessor) -> dict[str, Any]:
    """`crop_to_patches` is not looked at: InternVL's processor sets it, whatever the image processor says."""
    p.check_tile("size", encoder_side(c))
    fewest, most = p["min_patches"], p["max_patches"]
    if most == 1:  # no tiles at all, whatever `min_patches` says
        fewest = 1
    if type(most) is not int or type(fewest) is not int or not 1 <= fewest <= most:
        raise p.refused("min_patches", f"give a whole number from 1 to max_patches, {most!r}.")
    return dict(type="data.views.Dynamic", fewest=fewest, most=most)


INTERNVL_VISION = Family(
    model_type="internvl_vision",
    architecture="InternVLVisionModel",
    spec=_vision_spec,
    config=_vision_config,
    rows=_vision_rows,
    part="encoders/image",
    ignored=(r"embeddings\.mask_token$",),
)
INTERNVL = Family(
    model_type="internvl",
    architecture="InternVLForConditionalGeneration",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="",
    modules=MODULES,
    renames=RENAMES,
    ignored=(*LLAVA.ignored, r"embeddings\.mask_token$"),
    views=_views,
)
