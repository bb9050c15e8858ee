"""GPT-NeoX, Pythia: config.json and name table (transformers, models/gpt_neox)."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.classic import KEYS, QKV, config_by, linear, norm, rope_fraction, spec_by
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.positions import rope_config, rope_of
from mmjax.hub.table import Op, Row, T, rows_under
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import BUFFERS

_NEOX = dict(
    vocab_size=50_432,
    hidden_size=6144,
    num_hidden_layers=44,
    num_attention_heads=64,
    intermediate_size=24_576,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    tie_word_embeddings=False,
    use_parallel_residual=True,
    attention_bias=True,
)


def _spec(c: Json) -> dict[str, Any]:
    c = {**_NEOX, **c}
    theta, scaling = rope_of(c, c.get("rotary_emb_base", 10_000.0))
    return spec_by(
        "neox",
        c,
        KEYS,
        kv_heads=c["num_attention_heads"],
        activation=family.activation(c["hidden_act"]),
        parallel=c["use_parallel_residual"],
        qkv_bias=c["attention_bias"],
        out_bias=c["attention_bias"],
        rope_theta=theta,
        rope_scaling=scaling,
        rope_fraction=rope_fraction(c, c.get("rotary_pct", 0.25)),
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    if full["parallel"] and full["shared_norm"]:
        raise CheckpointError("shared_norm: GPT-NeoX norms the feed-forward's input on its own.")
    return (
        config_by(spec, KEYS)
        | rope_config(full)
        | dict(
            hidden_act=family.ACTIVATIONS[full["activation"]],
            use_parallel_residual=full["parallel"],
            attention_bias=full["qkv_bias"],
            rotary_emb_base=full["rope_theta"],
            rotary_pct=full["rope_fraction"],
        )
    )


def _by_head(heads: int) -> Op:
    """One tensor [H * 3 * Dh, ...], query, key and value of each head in turn, and three [..., H * Dh]."""

    def to_ours(xs):
        (x,) = xs
        x = x.reshape(heads, 3, -1, *x.shape[1:])
        return tuple(x[:, i].reshape(-1, *x.shape[3:]).T for i in range(3))

    def to_theirs(xs):
        parts = [x.T.reshape(heads, 1, -1, *x.T.shape[1:]) for x in xs]
        joined = parts[0].__array_namespace__().concatenate(parts, axis=1)
        return (joined.reshape(-1, *joined.shape[3:]),)

    return Op(to_ours, to_theirs)


def _rows(spec: Json) -> list[Row]:
    split = _by_head(complete(spec)["heads"])
    layer = [
        Row(tuple(f"attention/{n}/kernel" for n in QKV), "attention.query_key_value.weight", split),
        Row(tuple(f"attention/{n}/bias" for n in QKV), "attention.query_key_value.bias", split),
        *linear("attention/out", "attention.dense"),
        *norm("attention_norm", "input_layernorm"),
        *norm("mlp_norm", "post_attention_layernorm"),
        *linear("mlp/up", "mlp.dense_h_to_4h"),
        *linear("mlp/down", "mlp.dense_4h_to_h"),
    ]
    return [
        Row("embedding", "gpt_neox.embed_in.weight"),
        *rows_under("layers/", "gpt_neox.layers.*.", layer),
        *norm("norm_out", "gpt_neox.final_layer_norm"),
        Row("head/kernel", "embed_out.weight", T),
    ]


NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    spec=_spec,
    config=_config,
    rows=_rows,
    part="backbone",
    modules=(("embed_out.", "lm_head."),),
    renames=((r"^(?=(embed_in|layers|final_layer_norm)\.)", "gpt_neox."),),
    ignored=(*BUFFERS, r"attention\.(masked_)?bias$"),
)
