"""MPT: config.json and name table (transformers, models/mpt)."""

from __future__ import annotations

from typing import Any

from mmjax.hub.classic import QKV, config_by, refuse, spec_by
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Row, T, fused, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS

_MPT_KEYS = {
    "vocab": "vocab_size",
    "width": "d_model",
    "depth": "n_layers",
    "heads": "n_heads",
    "norm_eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
_MPT = dict(
    vocab_size=50_368,
    d_model=2048,
    n_layers=24,
    n_heads=16,
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=True,
)


def _spec(c: Json) -> dict[str, Any]:
    c = {**_MPT, **c}
    refuse(c, dict(no_bias=True, logit_scale=None, expansion_ratio=4))
    inner = c.get("attn_config") or {}
    refuse(
        inner,
        dict(
            attn_type="multihead_attention",
            alibi=True,
            alibi_bias_max=8,
            clip_qkv=None,
            qk_ln=False,
            prefix_lm=False,
        ),
    )
    return spec_by(
        "mpt",
        c,
        _MPT_KEYS,
        kv_heads=c["n_heads"],
        mlp_width=4 * c["d_model"],
        query_scale=inner.get("softmax_scale") or 0.0,
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    if full["mlp_width"] != 4 * full["width"]:
        raise CheckpointError(f"mlp_width is {full['mlp_width']}; MPT's is four times the width.")
    return config_by(spec, _MPT_KEYS) | dict(
        expansion_ratio=4, no_bias=True, attn_config=dict(alibi=True, softmax_scale=full["query_scale"] or None)
    )


def _rows(spec: Json) -> list[Row]:
    width = complete(spec)["width"]
    layer = [
        Row(tuple(f"attention/{n}/kernel" for n in QKV), "attn.Wqkv.weight", fused(width, width, width)),
        Row("attention/out/kernel", "attn.out_proj.weight", T),
        Row("attention_norm/scale", "norm_1.weight"),
        Row("mlp_norm/scale", "norm_2.weight"),
        Row("mlp/up/kernel", "ffn.up_proj.weight", T),
        Row("mlp/down/kernel", "ffn.down_proj.weight", T),
    ]
    return [
        Row("embedding", "transformer.wte.weight"),
        *rows_under("layers/", "transformer.blocks.*.", layer),
        Row("norm_out/scale", "transformer.norm_f.weight"),
        Row("head/kernel", "lm_head.weight", T),
    ]


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="backbone",
    renames=((r"^(?=(wte|blocks|norm_f)\.)", "transformer."),),
    ignored=BUFFERS,
)
