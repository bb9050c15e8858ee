"""OPT with norms before: config.json and name table (transformers, models/opt)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.classic import KEYS, config_by, linear, norm, refuse, spec_by
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Row, T, rows_under
from mmjax.hub.text import BUFFERS, attention

_OPT_KEYS = {ours: theirs for ours, theirs in KEYS.items() if ours != "norm_eps"} | {
    "mlp_width": "ffn_dim",
    "max_positions": "max_position_embeddings",
}
_OPT = dict(
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    ffn_dim=3072,
    max_position_embeddings=2048,
    num_attention_heads=12,
    activation_function="relu",
    tie_word_embeddings=True,
    enable_bias=True,
)


def _spec(c: Json) -> dict[str, Any]:
    c = {**_OPT, **c}
    refuse(c, dict(do_layer_norm_before=True, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True))
    if c.get("word_embed_proj_dim") is not None:
        refuse(c, dict(word_embed_proj_dim=c["hidden_size"]))
    bias = c["enable_bias"]
    return spec_by(
        "opt",
        c,
        _OPT_KEYS,
        kv_heads=c["num_attention_heads"],
        activation=family.activation(c["activation_function"]),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    return config_by(spec, _OPT_KEYS) | dict(
        word_embed_proj_dim=full["width"],
        activation_function=family.ACTIVATIONS[full["activation"]],
        do_layer_norm_before=True,
        enable_bias=full["qkv_bias"],
    )


def _rows(spec: Json) -> list[Row]:
    layer = [
        *attention(out="out_proj"),
        *norm("attention_norm", "self_attn_layer_norm"),
        *linear("mlp/up", "fc1"),
        *linear("mlp/down", "fc2"),
        *norm("mlp_norm", "final_layer_norm"),
    ]
    return [
        Row("embedding", "model.decoder.embed_tokens.weight"),
        Row("position_embedding", "model.decoder.embed_positions.weight"),
        *rows_under("layers/", "model.decoder.layers.*.", layer),
        *norm("norm_out", "model.decoder.final_layer_norm"),
        Row("head/kernel", "lm_head.weight", T),
    ]


OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="backbone",
    renames=((r"^decoder\.", "model.decoder."),),
    ignored=BUFFERS,
)
