"""Idefics: a CLIP tower, a perceiver resampler, and Llama with gated cross-attention (transformers,
models/idefics).

Which picture a token looks at is not the model's choice but its processor's: the last one that stands before it
or at it, and after an end of sequence none. That is what `visible` says of an example, which is one sequence.
"""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete, family, family_of
from mmjax.hub.table import Row, T, reshape, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS, attention
from mmjax.hub.vision import norm

_DEFAULTS = dict(
    vocab_size=32_000,
    additional_vocab_size=0,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    rms_norm_eps=1e-6,
    alpha_type="float",
    cross_layer_interval=1,
    qk_layer_norms=False,
    use_resampler=False,
)
_VISION_DEFAULTS = dict(
    embed_dim=768,
    image_size=224,
    intermediate_size=5120,
    patch_size=14,
    num_hidden_layers=32,
    num_attention_heads=16,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
)
_PERCEIVER_KEYS = {
    "latents": "resampler_n_latents",
    "depth": "resampler_depth",
    "heads": "resampler_n_heads",
    "head_dim": "resampler_head_dim",
}
_PERCEIVER_DEFAULTS = dict(
    resampler_n_latents=64,
    resampler_depth=6,
    resampler_n_heads=16,
    resampler_head_dim=96,
    qk_layer_norms_perceiver=False,
)
_BASE = ("embed_tokens", "layers", "norm", "vision_model", "perceiver_resampler", "gated_cross_attn_layers")
_GATES = {"float": "scalar", "vector": "vector"}


def _spec(c: Json) -> dict[str, Any]:
    c = {**_DEFAULTS, **c}
    vision = {**_VISION_DEFAULTS, **(c.get("vision_config") or {})}
    perceiver = {**_PERCEIVER_DEFAULTS, **(c.get("perceiver_config") or {})}
    if not c["use_resampler"]:
        raise CheckpointError("config.json: Idefics without its resampler (use_resampler) is not known here.")
    if c["alpha_type"] not in _GATES:
        raise CheckpointError(f"config.json: alpha_type {c['alpha_type']!r} is none of {', '.join(_GATES)}.")
    if c["num_hidden_layers"] % c["cross_layer_interval"]:
        raise CheckpointError(
            f"config.json: cross_layer_interval {c['cross_layer_interval']} does not divide the "
            f"{c['num_hidden_layers']} layers."
        )
    encoder = family("clip_vision_model").spec(vision | dict(hidden_size=vision["embed_dim"]))
    projector = dict(
        type="projectors.resampler.Perceiver",
        **{ours: perceiver[theirs] for ours, theirs in _PERCEIVER_KEYS.items()},
        mlp_ratio=4,
        norm="layer",
        norm_eps=1e-5,
        activation="relu",
        qk_norm="layer" if perceiver["qk_layer_norms_perceiver"] else "",
        project=False,
    )
    vocab = c["vocab_size"] + c["additional_vocab_size"]
    backbone = family("llama").spec(c | dict(vocab_size=vocab)) | dict(
        additional_vocab=c["additional_vocab_size"],
        xattn=dict(
            every=c["cross_layer_interval"],
            first=0,
            qk_norm="rms" if c["qk_layer_norms"] else "",
            gate=_GATES[c["alpha_type"]],
        ),
    )
    return dict(
        encoders=dict(image=encoder | dict(layer=-1, final_norm="pooled", pool="all")),
        projectors=dict(image=projector),
        backbone=backbone,
        fusion="xattn",
    )


def _config(spec: Json) -> dict[str, Any]:
    encoder, backbone = complete(spec["encoders"]["image"]), complete(spec["backbone"])
    projector = {"qk_norm": "", **complete(spec["projectors"]["image"])}
    xattn = {"qk_norm": "", "gate": "scalar", **backbone["xattn"]}
    vision = family("clip_vision_model").config(spec["encoders"]["image"])
    text = family("llama").config(spec["backbone"])
    for key in ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"):
        text.pop(key, None)
    perceiver = {theirs: projector[ours] for ours, theirs in _PERCEIVER_KEYS.items()}
    made = text | dict(
        vocab_size=backbone["vocab"] - backbone["additional_vocab"],
        additional_vocab_size=backbone["additional_vocab"],
        cross_layer_interval=xattn["every"],
        qk_layer_norms=bool(xattn["qk_norm"]),
        alpha_type={ours: theirs for theirs, ours in _GATES.items()}[xattn["gate"]],
        use_resampler=True,
        perceiver_config=perceiver | dict(qk_layer_norms_perceiver=bool(projector["qk_norm"])),
        vision_config={("embed_dim" if key == "hidden_size" else key): value for key, value in vision.items()},
    )
    again = _spec(made)
    _same("encoders.image", encoder, complete(again["encoders"]["image"]))
    _same("projectors.image", projector, complete(again["projectors"]["image"]))
    _same("backbone.xattn", xattn, again["backbone"]["xattn"])
    _same("backbone", backbone | dict(xattn=None), complete(again["backbone"]) | dict(xattn=None))
    return made


def _same(part: str, ours: Json, theirs: Json) -> None:
    """Raises CheckpointError if a part of ours is not what Idefics has in its place."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    keys = ({**ours, **theirs}).keys() - {"remat", "scan"}
    differing = [key for key in sorted(keys) if plain(ours.get(key)) != plain(theirs.get(key))]
    if differing:
        what = ", ".join(f"{key}={ours.get(key)!r} (there: {theirs.get(key)!r})" for key in differing)
        raise CheckpointError(f"model.{part}: Idefics has no {what}.")


def _resampler(depth: int) -> list[Row]:
    rows = [Row("latents", "latents"), *norm("norm_out", "layer_norm")]
    for i in range(depth):
        projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "output_proj"}
        layer = [
            *[Row(f"attention_{i}/{ours}/kernel", f"0.{name}.weight", T) for ours, name in projections.items()],
            *norm(f"attention_{i}/query_norm", "0.q_layer_norm"),
            *norm(f"attention_{i}/key_norm", "0.k_layer_norm"),
            *norm(f"feature_norm_{i}", "0.context_layer_norm"),
            *norm(f"latent_norm_{i}", "0.latents_layer_norm"),
            *norm(f"mlp_norm_{i}", "1.ln"),
            Row(f"mlp_{i}/up/kernel", "1.fc.weight", T),
            Row(f"mlp_{i}/down/kernel", "1.c_proj.weight", T),
        ]
        rows += rows_under("", f"blocks.{i}.", layer)
    return rows


def _cross(gate: str, width: int) -> list[Row]:
    """A gated cross-attention block."""
    gates = reshape((), (1,)) if gate == "scalar" else reshape((width,), (1, 1, width))
    return [
        *attention(theirs="cross_attn."),
        Row("attention/query_norm/scale", "cross_attn.q_layer_norm.weight"),
        Row("attention/key_norm/scale", "cross_attn.k_layer_norm.weight"),
        Row("attention_norm/scale", "input_layernorm.weight"),
        Row("mlp_norm/scale", "post_attention_layernorm.weight"),
        *[Row(f"mlp/{n}/kernel", f"mlp.{n}_proj.weight", T) for n in ("gate", "up", "down")],
        Row("attention_gate", "alpha_cross_attn", gates),
        Row("mlp_gate", "alpha_dense", gates),
    ]


def _rows(spec: Json) -> list[Row]:
    if spec["fusion"] != "xattn":
        raise CheckpointError(f"model.fusion: Idefics has 'xattn', not {spec['fusion']!r}.")
    encoder, projector, backbone = spec["encoders"]["image"], spec["projectors"]["image"], spec["backbone"]
    additional = [
        Row("embedding", "model.embed_tokens.additional_embedding.weight"),
        Row("head/kernel", "lm_head.additional_fc.weight", T),
    ]
    cross = _cross(backbone["xattn"].get("gate", "scalar"), backbone["width"])
    return [
        *rows_under("encoders/image/", "model.", family_of(encoder).rows(encoder)),
        *rows_under("projectors/image/", "model.perceiver_resampler.", _resampler(projector["depth"])),
        *rows_under("backbone/xattn/", "model.gated_cross_attn_layers.*.", cross),
        *rows_under("backbone/", "", family_of(backbone).rows(backbone)),
        *rows_under("backbone/additional_", "", additional),
    ]


IDEFICS = Family(
    model_type="idefics",
    architecture="IdeficsForVisionText2Text",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="",
    # IdeficsModel saved alone lacks the level.
    renames=((rf"^(?=({'|'.join(_BASE)})\.)", "model."),),
    ignored=(r"position_ids$", *BUFFERS),
    template="idefics",
)
