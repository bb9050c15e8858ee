"""Text families: config.json and name tables of decoder-only language models."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Row, T, rows_under
from mmjax.hub.tensors import CheckpointError

# Ours -> what Llama and its descendants call it.
_LLAMA_KEYS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}


def rope_of(c: Json) -> tuple[float, Json]:
    """(theta, the rest of the rotary settings) of a config.json of transformers 4 or 5."""
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", None) or c.get("rope_theta") or 10_000.0)
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    return theta, rope


def _llama_spec(variant: str, c: Json, **more: Any) -> dict[str, Any]:
    theta, rope = rope_of(c)
    if rope["rope_type"] != "default":
        raise CheckpointError(f"config.json: rotary positions of type {rope['rope_type']!r} are not known here.")
    defaults = {
        "num_key_value_heads": c["num_attention_heads"],
        "head_dim": c["hidden_size"] // c["num_attention_heads"],
        "tie_word_embeddings": False,
    }
    sizes = {
        ours: c[theirs] if c.get(theirs) is not None else defaults[theirs] for ours, theirs in _LLAMA_KEYS.items()
    }
    return dict(
        type="backbones.decoder.Decoder",
        variant=variant,
        **sizes,
        activation=family.activation(c.get("hidden_act", "silu")),
        rope_theta=theta,
        xattn=None,
        **more,
    )


def _llama_config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in _LLAMA_KEYS.items()} | dict(
        hidden_act=family.ACTIVATIONS[full["activation"]],
        rope_parameters=dict(rope_type="default", rope_theta=full["rope_theta"]),
    )


def attention(ours: str = "attention/", theirs: str = "self_attn.", out: str = "o_proj") -> list[Row]:
    """Separate projections, with biases where the model has them."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": out}
    rows = [Row(f"{n}/kernel", f"{name}.weight", T) for n, name in names.items()]
    rows += [Row(f"{n}/bias", f"{name}.bias") for n, name in names.items()]
    return rows_under(ours, theirs, rows)


def _llama_rows(spec: Json) -> list[Row]:
    layer = [
        *attention(),
        Row("attention/query_norm/scale", "self_attn.q_norm.weight"),
        Row("attention/key_norm/scale", "self_attn.k_norm.weight"),
        Row("attention_norm/scale", "input_layernorm.weight"),
        Row("mlp_norm/scale", "post_attention_layernorm.weight"),
        *[Row(f"mlp/{n}/kernel", f"mlp.{n}_proj.weight", T) for n in ("gate", "up", "down")],
        *[Row(f"mlp/{n}/bias", f"mlp.{n}_proj.bias") for n in ("gate", "up", "down")],
    ]
    return [
        Row("embedding", "model.embed_tokens.weight"),
        *rows_under("layers/", "model.layers.*.", layer),
        Row("norm_out/scale", "model.norm.weight"),
        Row("head/kernel", "lm_head.weight", T),
    ]


# A tied head is saved by some versions of `transformers`, and is the embedding table again.
_TIED = (r"(^|\.)lm_head\.weight$", r"rotary_emb\.inv_freq$")


def _llama_spec_checked(c: Json) -> dict[str, Any]:
    return _llama_spec(
        "llama",
        c,
        qkv_bias=c.get("attention_bias", False),
        out_bias=c.get("attention_bias", False),
        mlp_bias=c.get("mlp_bias", False),
    )


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    spec=_llama_spec_checked,
    config=lambda spec: (
        _llama_config(spec) | dict(attention_bias=complete(spec)["qkv_bias"], mlp_bias=complete(spec)["mlp_bias"])
    ),
    rows=_llama_rows,
    part="backbone",
    ignored=_TIED,
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    spec=lambda c: _llama_spec("llama", c),
    config=lambda spec: _llama_config(spec) | dict(sliding_window=None),
    rows=_llama_rows,
    part="backbone",
    ignored=_TIED,
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    spec=lambda c: _llama_spec("qwen2", c),
    config=_llama_config,
    rows=_llama_rows,
    part="backbone",
    ignored=_TIED,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    spec=lambda c: _llama_spec("qwen3", c),
    config=_llama_config,
    rows=_llama_rows,
    part="backbone",
    ignored=_TIED,
)
