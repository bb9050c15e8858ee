"""Text families: config.json and name tables of decoder-only language models."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.table import Row, T, rows_under
from mmjax.hub.tensors import CheckpointError

# Ours -> what Llama and its descendants call it.
_KEYS = {
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


_LLAMA = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    tie_word_embeddings=False,
)


def llama_spec(variant: str, c: Json, defaults: Json = _LLAMA, **more: Any) -> dict[str, Any]:
    """The spec of Llama or a descendant. defaults: for keys that config.json lacks. `more` overrides."""
    c = {**defaults, **c}
    theta, rope = rope_of(c)
    if rope["rope_type"] != "default":
        raise CheckpointError(f"config.json: rotary positions of type {rope['rope_type']!r} are not known here.")
    derived = {
        "num_key_value_heads": c["num_attention_heads"],
        "head_dim": c["hidden_size"] // c["num_attention_heads"],
    }
    sizes = {ours: c[theirs] if c.get(theirs) is not None else derived[theirs] for ours, theirs in _KEYS.items()}
    spec = dict(
        type="backbones.decoder.Decoder",
        variant=variant,
        **sizes,
        activation=family.activation(c["hidden_act"]),
        rope_theta=theta,
        xattn=None,
    )
    return spec | more


def llama_config(spec: Json) -> dict[str, Any]:
    """config.json of Llama or a descendant."""
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in _KEYS.items()} | dict(
        hidden_act=family.ACTIVATIONS[full["activation"]],
        rope_parameters=dict(rope_type="default", rope_theta=full["rope_theta"]),
    )


def attention(ours: str = "attention/", theirs: str = "self_attn.", out: str = "o_proj") -> list[Row]:
    """Separate projections, with biases where the model has them."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": out}
    rows = [Row(f"{n}/kernel", f"{name}.weight", T) for n, name in names.items()]
    rows += [Row(f"{n}/bias", f"{name}.bias") for n, name in names.items()]
    return rows_under(ours, theirs, rows)


def llama_rows(spec: Json) -> list[Row]:
    """The table of Llama or a descendant."""
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
TIED = (r"(^|\.)lm_head\.weight$", r"rotary_emb\.inv_freq$")


def _spec(c: Json) -> dict[str, Any]:
    return llama_spec(
        "llama",
        c,
        qkv_bias=c.get("attention_bias", False),
        out_bias=c.get("attention_bias", False),
        mlp_bias=c.get("mlp_bias", False),
    )


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    spec=_spec,
    config=lambda spec: (
        llama_config(spec) | dict(attention_bias=complete(spec)["qkv_bias"], mlp_bias=complete(spec)["mlp_bias"])
    ),
    rows=llama_rows,
    part="backbone",
    ignored=TIED,
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    spec=lambda c: llama_spec("llama", c),
    config=lambda spec: llama_config(spec) | dict(sliding_window=None),
    rows=llama_rows,
    part="backbone",
    ignored=TIED,
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    spec=lambda c: llama_spec("qwen2", c),
    config=llama_config,
    rows=llama_rows,
    part="backbone",
    ignored=TIED,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    spec=lambda c: llama_spec("qwen3", c),
    config=llama_config,
    rows=llama_rows,
    part="backbone",
    ignored=TIED,
)
