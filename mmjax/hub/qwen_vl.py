"""Qwen2-VL and Qwen2.5-VL: a ViT at native resolution, a patch merger, a Qwen2 with M-RoPE (transformers,
models/qwen2_vl and models/qwen2_5_vl). Pictures and text; no videos."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.image_processor import NATIVE_KEYS, ImageProcessor
from mmjax.hub.positions import rope_keys
from mmjax.hub.table import KEEP, Op, Row, T, each, fused, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS, QWEN2

PATCHES = 4 * 1280  # that a picture has room for, if the config says no other number; what takes more is refused

# Ours -> what both call it.
_VISION_KEYS = {
    "depth": "depth",
    "heads": "num_heads",
    "patch": "patch_size",
    "frames": "temporal_patch_size",
    "merge": "spatial_merge_size",
}
_VISION = dict(depth=32, num_heads=16, patch_size=14, temporal_patch_size=2, spatial_merge_size=2)
_VISION_2 = _VISION | dict(embed_dim=1280, mlp_ratio=4, hidden_act="quick_gelu")
_VISION_2_5 = _VISION | dict(
    hidden_size=3584,
    intermediate_size=3420,
    hidden_act="silu",
    window_size=112,
    fullatt_block_indexes=(7, 15, 23, 31),
)


def _encoder(variant: str, c: Json, width: int, **more: Any) -> dict[str, Any]:
    if c.get("in_channels", c.get("in_chans", 3)) != 3:
        raise CheckpointError("config.json, vision_config: pictures of other than 3 channels are not known here.")
    rope = c.get("rope_parameters") or {}
    if rope.get("rope_type", "axial") != "axial":
        raise CheckpointError(f"config.json, vision_config: rope_type {rope['rope_type']!r} is not known here.")
    return dict(
        type="encoders.native.NativeViT",
        variant=variant,
        patches=PATCHES,
        width=width,
        **{ours: c[theirs] for ours, theirs in _VISION_KEYS.items()},
        kv_heads=c["num_heads"],
        head_dim=width // c["num_heads"],
        activation=family.activation(c["hidden_act"]),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        **more,
    )


def _encoder_2(c: Json) -> dict[str, Any]:
    c = {**_VISION_2, **c}
    return _encoder("qwen2_vl", c, c["embed_dim"], mlp_width=int(c["embed_dim"] * c["mlp_ratio"]))


def _encoder_2_5(c: Json) -> dict[str, Any]:
    c = {**_VISION_2_5, **c}
    merge, patch = c["spatial_merge_size"], c["patch_size"]
    return _encoder(
        "qwen2_5_vl",
        c,
        c["hidden_size"],
        mlp_width=c["intermediate_size"],
        window=c["window_size"] // merge // patch * merge,
        full=tuple(c["fullatt_block_indexes"]),
    )


def _backbone(c: Json) -> dict[str, Any]:
    """Of a config.json's `text_config`, or of all of it: hub files have no such section."""
    text = dict(c.get("text_config") or c)
    text["tie_word_embeddings"] = bool(c.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    rope = {"rope_theta": text.get("rope_theta", 1e6), **rope_keys(text)}
    text = {key: value for key, value in text.items() if key not in ("rope_parameters", "rope_scaling")}
    sections = tuple(rope.pop("mrope_section", (16, 24, 24)))
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope["rope_type"] = "default" if kind == "mrope" else kind
    spec = QWEN2.spec(text | dict(rope_parameters=rope))
    if "local" in spec["attention_pattern"]:
        raise CheckpointError("config.json: sliding windows are not known here together with M-RoPE.")
    return spec | dict(rope_sections=sections)


def _spec(encoder: dict[str, Any], c: Json) -> dict[str, Any]:
    projector = dict(
        type="projectors.mlp.MLP",
        depth=2,
        activation="gelu",
        bias=True,
        reduce="concat",
        factor=encoder["merge"] ** 2,
        hidden=encoder["width"] * encoder["merge"] ** 2,
        norm="",
    )
    return dict(
        encoders=dict(image=encoder),
        projectors=dict(image=projector),
        backbone=_backbone(c),
        fusion="splice",
    )


def _config(vision: dict[str, Any], spec: Json) -> dict[str, Any]:
    encoder, backbone = complete(spec["encoders"]["image"]), complete(spec["backbone"])
    text = QWEN2.config(spec["backbone"])
    sections = dict(mrope_section=list(backbone["rope_sections"]))
    ropes = dict(
        rope_parameters=text["rope_parameters"] | sections,
        rope_scaling=(text["rope_scaling"] or dict(type="mrope")) | sections,  # for transformers 4
    )
    return dict(
        vision_config=dict(
            **{theirs: encoder[ours] for ours, theirs in _VISION_KEYS.items()},
            hidden_act=family.ACTIVATIONS[encoder["activation"]],
            rope_parameters=dict(rope_type="axial", rope_theta=encoder["rope_theta"]),
            **vision,
        ),
        text_config=text | ropes,
        tie_word_embeddings=backbone["tied"],
    )


def _config_2(spec: Json) -> dict[str, Any]:
    encoder, backbone = complete(spec["encoders"]["image"]), complete(spec["backbone"])
    ratio, rest = divmod(encoder["mlp_width"], encoder["width"])
    if rest:
        raise CheckpointError("model.encoders.image: Qwen2-VL's mlp_width is a multiple of its width.")
    vision = dict(embed_dim=encoder["width"], hidden_size=backbone["width"], mlp_ratio=ratio)
    return _config(dict(model_type="qwen2_vl_vision", **vision), spec)


def _config_2_5(spec: Json) -> dict[str, Any]:
    encoder, backbone = complete(spec["encoders"]["image"]), complete(spec["backbone"])
    vision = dict(
        hidden_size=encoder["width"],
        out_hidden_size=backbone["width"],
        intermediate_size=encoder["mlp_width"],
        window_size=encoder["window"] * encoder["patch"],
        fullatt_block_indexes=list(encoder["full"]),
    )
    return _config(dict(model_type="qwen2_5_vl_vision", **vision), spec)


def _views(c: Json, p: ImageProcessor) -> dict[str, Any]:
    """Of the image processor's settings; a picture may not have more patches than the encoder has room for."""
    vision = {**_VISION, **c["vision_config"]}
    for key, other in NATIVE_KEYS.items():
        if p[key] != vision[other]:
            raise p.refused(key, f"{other} of config.json is {vision[other]}; set it to that.")
    size, limits = p.size(), {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    least, most = (p[key] or size.get(edge) for key, edge in limits.items())
    if set(size) - set(limits.values()) or not all(type(n) is int and n > 0 for n in (least, most)):
        raise p.refused("size", "give shortest_edge and longest_edge, a picture's fewest and most pixels.")
    if least > most:
        raise p.refused("size", f"at least {least} pixels and at most {most} cannot be.")
    return dict(
        type="data.patches.Native",
        patches=PATCHES,
        merge=vision["spatial_merge_size"],
        min_pixels=least,
        max_pixels=most,
    )


def patches_in_time(size: int, frames: int) -> Op:
    """A patch convolution [D, 3, F, P, P] and a linear map of flattened patches [F * P * P * 3, D]."""
    return each(
        lambda w: w.transpose(2, 3, 4, 1, 0).reshape(-1, w.shape[0]),
        lambda w: w.reshape(frames, size, size, 3, -1).transpose(4, 3, 0, 1, 2),
    )


def _rows(spec: Json) -> list[Row]:
    encoder = complete(spec["encoders"]["image"])
    width = encoder["width"]
    names = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}
    if not encoder["gated"]:
        names = {"up": "fc1", "down": "fc2"}
    fields = (("kernel", "weight", T), ("bias", "bias", KEEP))
    qkv = [
        Row(
            tuple(f"attention/{n}/{a}" for n in ("query", "key", "value")),
            f"attn.qkv.{b}",
            fused(*[width] * 3, then=op),
        )
        for a, b, op in fields
    ]
    linears = {"attention/out": "attn.proj"} | {f"mlp/{ours}": f"mlp.{theirs}" for ours, theirs in names.items()}
    norms = {"attention_norm": "norm1", "mlp_norm": "norm2"}
    layer = [
        *qkv,
        *[Row(f"{ours}/{a}", f"{theirs}.{b}", op) for ours, theirs in linears.items() for a, b, op in fields],
        *[Row(f"{ours}/scale", f"{theirs}.weight") for ours, theirs in norms.items()],
        *[Row(f"{ours}/bias", f"{theirs}.bias") for ours, theirs in norms.items()],
    ]
    vision = [
        Row("embed/kernel", "patch_embed.proj.weight", patches_in_time(encoder["patch"], encoder["frames"])),
        *rows_under("layers/", "blocks.*.", layer),
        Row("norm_out/scale", "merger.ln_q.weight"),
        Row("norm_out/bias", "merger.ln_q.bias"),
    ]
    merger = [Row(f"linear_{i}/{a}", f"merger.mlp.{2 * i}.{b}", op) for i in range(2) for a, b, op in fields]
    return [
        *rows_under("encoders/image/", "visual.", vision),
        *rows_under("projectors/image/", "visual.", merger),
        *rows_under("backbone/", "", QWEN2.rows(spec["backbone"])),
    ]


# What transformers 4.52 and later call the parts in memory; files have the names without.
_MODULES = (("visual.", "model.visual."), ("model.", "model.language_model."))
QWEN2_VL = Family(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    spec=lambda c: _spec(_encoder_2(c["vision_config"]), c),
    config=_config_2,
    rows=_rows,
    part="",
    modules=_MODULES,
    renames=((r"^language_model\.", "model."),),  # Qwen2VLModel saved alone
    ignored=(r"rotary_pos_emb\.inv_freq$", *BUFFERS),
    views=_views,
)
QWEN2_5_VL = dataclasses.replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    spec=lambda c: _spec(_encoder_2_5(c["vision_config"]), c),
    config=_config_2_5,
)
