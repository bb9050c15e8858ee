"""Vision families: config.json and name tables of CLIP's and SigLIP's image encoders.

The names are those below `vision_model.`; `transformers` 5 leaves that level out of a tower that it saves alone.
"""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import KEEP, Row, T, fused, patches, reshape, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import attention

# Ours -> what CLIP, SigLIP and their descendants call it.
KEYS = {
    "size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}
_CLIP_DEFAULTS = dict(
    image_size=224,
    patch_size=32,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
)
_SIGLIP_DEFAULTS = _CLIP_DEFAULTS | dict(patch_size=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")


def vit_spec(variant: str, c: Json, defaults: Json, **more: Any) -> dict[str, Any]:
    """The ViT of a config.json. Raises CheckpointError for pictures that are no RGB squares."""
    c = {**defaults, **c}
    if c.get("num_channels", 3) != 3:
        raise CheckpointError(f"config.json: pictures of {c['num_channels']} channels; only 3 are known here.")
    c |= {key: side(key, c[key]) for key in ("image_size", "patch_size")}
    return dict(
        type="encoders.vit.ViT",
        variant=variant,
        **{ours: c[theirs] for ours, theirs in KEYS.items()},
        kv_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        activation=family.activation(c["hidden_act"]),
        layer=-1,
        **more,
    )


def vit_config(spec: Json) -> dict[str, Any]:
    """config.json of a ViT."""
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in KEYS.items()} | dict(
        hidden_act=family.ACTIVATIONS[full["activation"]], num_channels=3
    )


def linear(ours: str, theirs: str) -> list[Row]:
    """A Linear, with a bias where the model has one."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", T), Row(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def fused_attention(theirs: str, separator: str, width: int, out: str) -> list[Row]:
    """Attention whose queries, keys and values are one projection, `theirs` + separator + 'weight' or 'bias'."""
    sizes = (width,) * 3
    return rows_under(
        "attention/",
        "",
        [
            Row(_qkv("kernel"), f"{theirs}{separator}weight", fused(*sizes)),
            Row(_qkv("bias"), f"{theirs}{separator}bias", fused(*sizes, then=KEEP)),
            *linear("out", out),
        ],
    )


def block() -> list[Row]:
    """Norms and feed-forward of a layer, as CLIP and its kin name them."""
    return [
        *norm("attention_norm", "layer_norm1"),
        *norm("mlp_norm", "layer_norm2"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]


def _rows(spec: Json) -> list[Row]:
    full = complete(spec)
    patch, width = full["patch"], full["width"]
    # SigLIP 2 of any aspect ratio reads patches that are cut out before.
    cut = T if spec["variant"] == "siglip2" else patches(patch)
    pool = [
        Row("probe", "probe"),
        *fused_attention("attention.in_proj", "_", width, "attention.out_proj"),
        *norm("norm", "layernorm"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]
    return [
        Row("stem/embed/kernel", "embeddings.patch_embedding.weight", cut),
        Row("stem/embed/bias", "embeddings.patch_embedding.bias"),
        Row("class_token", "embeddings.class_embedding", reshape((1, 1, width), (width,))),
        Row("position_embedding", "embeddings.position_embedding.weight"),
        *norm("norm_in", "pre_layrnorm"),
        *rows_under("layers/", "encoder.layers.*.", [*attention(out="out_proj"), *block()]),
        *norm("norm_out", "post_layernorm"),
        *rows_under("pool_map/", "head.", pool),
    ]


def _qkv(name: str) -> tuple[str, ...]:
    return tuple(f"{part}/{name}" for part in ("query", "key", "value"))


def side(key: str, value: Any) -> int:
    """Pixels of a side, of a number or a pair. Raises CheckpointError for what is no square."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise CheckpointError(f"config.json: {key} {value} is no square; only squares are known here.")
    side = sides.pop()
    if type(side) is not int or side < 1:
        raise CheckpointError(f"config.json: {key} {value!r} is no number of pixels.")
    return side


def _siglip_config(spec: Json) -> dict[str, Any]:
    return vit_config(spec) | dict(vision_use_head=complete(spec)["pool"] == "map")


def _siglip2_spec(c: Json) -> dict[str, Any]:
    patch, count = c.get("patch_size", 16), c.get("num_patches", 256)
    side = round(count**0.5)
    if side * side != count:
        raise CheckpointError(f"config.json: num_patches {count} is no square grid.")
    return vit_spec("siglip2", {**c, "image_size": side * patch}, _SIGLIP_DEFAULTS)


def _siglip2_config(spec: Json) -> dict[str, Any]:
    config = _siglip_config(spec)
    return config | dict(num_patches=(config.pop("image_size") // config["patch_size"]) ** 2)


# What may stand below `vision_model.`, told apart from the names of other encoders.
CLIP_NAMES = (
    r"(embeddings\.(class_embedding|(patch|position)_embedding\.)|encoder\.layers\.|\w+_la\w*norm\.|head\.)"
)
# What a tower of which features alone are wanted does without.
UNUSED = r"(vision_model\.(head|post_layernorm)|layernorm|embeddings\.mask_token)(\.|$)"
_TEXT_TOWER = (r"^text_model\.", r"^text_projection\.", r"^logit_(scale|bias)$")


def _families(name: str, architecture: str, spec, config) -> tuple[Family, Family]:
    """The two-tower model of that name, of which the image encoder is a part, and that encoder alone."""
    unused = (rf"^{UNUSED}", r"^visual_projection\.")
    common = dict(
        rows=lambda spec: rows_under("", "vision_model.", _rows(spec)),
        part="encoders/image",
        renames=((rf"^(?={CLIP_NAMES})", "vision_model."),),
        ignored=(r"embeddings\.position_ids$",),
        unwritten=("vision_use_head",),
    )
    both = Family(
        model_type=name,
        architecture=f"{architecture}Model",
        spec=lambda c: spec(c.get("vision_config", {})),
        config=lambda encoder: dict(vision_config=config(encoder)),
        aside=(*unused, *_TEXT_TOWER),
        partial=True,
        **common,
    )
    tower = Family(
        model_type=f"{name}_vision_model",
        architecture=f"{architecture}VisionModel",
        spec=spec,
        config=config,
        aside=unused,
        **common,
    )
    return both, tower


CLIP, CLIP_VISION = _families("clip", "CLIP", lambda c: vit_spec("clip", c, _CLIP_DEFAULTS), vit_config)
SIGLIP, SIGLIP_VISION = _families(
    "siglip", "Siglip", lambda c: vit_spec("siglip", c, _SIGLIP_DEFAULTS), _siglip_config
)
SIGLIP2, SIGLIP2_VISION = _families("siglip2", "Siglip2", _siglip2_spec, _siglip2_config)
