"""Phi-1, 1.5 and 2: config.json and name table (transformers, models/phi)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.classic import KEYS, config_by, linear, norm, rope_fraction, spec_by
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.positions import rope_config, rope_of
from mmjax.hub.table import Row, rows_under
from mmjax.hub.text import ALONE, BUFFERS, attention

_PHI = dict(
    vocab_size=51_200,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    layer_norm_eps=1e-5,
    hidden_act="gelu_new",
    tie_word_embeddings=False,
)


def _spec(c: Json) -> dict[str, Any]:
    c = {**_PHI, **c}
    theta, scaling = rope_of(c)
    return spec_by(
        "phi",
        c,
        KEYS,
        kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
        activation=family.activation(c["hidden_act"]),
        qk_norm="layer" if c.get("qk_layernorm") else "",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_fraction=rope_fraction(c, 0.5),
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    return (
        config_by(spec, KEYS)
        | rope_config(full)
        | dict(
            num_key_value_heads=full["kv_heads"],
            hidden_act=(family.ACTIVATIONS | dict(gelu_tanh="gelu_new"))[full["activation"]],
            qk_layernorm=full["qk_norm"] == "layer",
        )
    )


def _rows(spec: Json) -> list[Row]:
    layer = [
        *attention(out="dense"),
        *norm("attention/query_norm", "self_attn.q_layernorm"),
        *norm("attention/key_norm", "self_attn.k_layernorm"),
        *norm("attention_norm", "input_layernorm"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]
    return [
        Row("embedding", "model.embed_tokens.weight"),
        *rows_under("layers/", "model.layers.*.", layer),
        *norm("norm_out", "model.final_layernorm"),
        *linear("head", "lm_head"),
    ]


PHI = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="backbone",
    renames=ALONE,
    ignored=BUFFERS,
)
