"""Text families: config.json and name tables of decoder-only language models."""

from __future__ import annotations

from typing import Any

from mmjax.hub import family
from mmjax.hub.family import Family, Json, complete
from mmjax.hub.positions import layer_types, layers_of, rope_config, rope_of
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


# What config.json means by a key that it lacks.
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
_MISTRAL = _LLAMA | dict(intermediate_size=14_336, num_key_value_heads=8, sliding_window=4096)
_QWEN2 = _LLAMA | dict(
    vocab_size=151_936,
    intermediate_size=22_016,
    num_key_value_heads=32,
    sliding_window=4096,
    max_window_layers=28,
)
_QWEN3 = _QWEN2 | dict(head_dim=128)


def llama_spec(variant: str, c: Json, defaults: Json = _LLAMA, **more: Any) -> dict[str, Any]:
    """The spec of Llama or a descendant. defaults: for keys that config.json lacks. `more` overrides."""
    c = {**defaults, **c}
    theta, scaling = rope_of(c)
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
        rope_scaling=scaling,
        xattn=None,
    )
    return spec | more


def llama_config(spec: Json) -> dict[str, Any]:
    """config.json of Llama or a descendant."""
    full = complete(spec)
    return {theirs: full[ours] for ours, theirs in _KEYS.items()} | dict(
        hidden_act=family.ACTIVATIONS[full["activation"]], **rope_config(full)
    )


def attention(ours: str = "attention/", theirs: str = "self_attn.", out: str = "o_proj") -> list[Row]:
    """Separate projections, with biases where the model has them."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": out}
    rows = [Row(f"{n}/kernel", f"{name}.weight", T) for n, name in names.items()]
    rows += [Row(f"{n}/bias", f"{name}.bias") for n, name in names.items()]
    return rows_under(ours, theirs, rows)


def llama_rows(spec: Json) -> list[Row]:
    """The table of Llama or a descendant; of Gemma 2 and 3, whose blocks have norms behind, too."""
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if complete(spec)["post_norm"]:
        norms |= {"attention_post_norm": "post_attention_layernorm"}
        norms |= {"mlp_norm": "pre_feedforward_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
    layer = [
        *attention(),
        Row("attention/query_norm/scale", "self_attn.q_norm.weight"),
        Row("attention/key_norm/scale", "self_attn.k_norm.weight"),
        *[Row(f"{ours}/scale", f"{theirs}.weight") for ours, theirs in norms.items()],
        *[Row(f"mlp/{n}/kernel", f"mlp.{n}_proj.weight", T) for n in ("gate", "up", "down")],
        *[Row(f"mlp/{n}/bias", f"mlp.{n}_proj.bias") for n in ("gate", "up", "down")],
    ]
    return [
        Row("embedding", "model.embed_tokens.weight"),
        *rows_under("layers/", "model.layers.*.", layer),
        Row("norm_out/scale", "model.norm.weight"),
        Row("head/kernel", "lm_head.weight", T),
    ]


BUFFERS = (r"rotary_emb\.inv_freq$",)  # in files of transformers before 4.31
# A base model saved alone, such as LlamaModel, lacks the level.
ALONE = ((r"^(?=(embed_tokens|layers|norm|final_layernorm)\.)", "model."),)


def _biases(c: Json) -> dict[str, Any]:
    bias = c.get("attention_bias", False)
    return dict(qkv_bias=bias, out_bias=bias)


def _mistral_spec(c: Json) -> dict[str, Any]:
    window = {**_MISTRAL, **c}["sliding_window"]
    pattern = ["local" if window else "global"]
    return llama_spec("mistral", c, _MISTRAL, sliding_window=window or 0, attention_pattern=pattern)


def _mistral_config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    kinds = set(full["attention_pattern"])
    if len(kinds) > 1:
        raise CheckpointError("attention_pattern: Mistral's layers are all local or all global.")
    return llama_config(spec) | dict(sliding_window=full["sliding_window"] if kinds == {"local"} else None)


def _qwen_spec(variant: str, c: Json, defaults: Json, **more: Any) -> dict[str, Any]:
    full = {**defaults, **c}
    depth, window = full["num_hidden_layers"], full["sliding_window"] if c.get("use_sliding_window") else None
    first = full["max_window_layers"] if window else depth
    types = c.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
    return llama_spec(variant, c, defaults, **layers_of(types, window), **more)


def _qwen_config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    types = layer_types(full)
    made = llama_config(spec) | dict(layer_types=types, use_sliding_window=False)
    if "sliding_attention" in types:
        first = types.index("sliding_attention")
        made |= dict(use_sliding_window=True, sliding_window=full["sliding_window"], max_window_layers=first)
    return made


def _text(model_type: str, architecture: str, spec: Any, config: Any) -> Family:
    common = dict(rows=llama_rows, part="backbone", renames=ALONE, ignored=BUFFERS)
    return Family(model_type, architecture, spec, config, **common)


LLAMA = _text(
    "llama",
    "LlamaForCausalLM",
    lambda c: llama_spec("llama", c, **_biases(c), mlp_bias=c.get("mlp_bias", False)),
    lambda spec: (
        llama_config(spec) | dict(attention_bias=complete(spec)["qkv_bias"], mlp_bias=complete(spec)["mlp_bias"])
    ),
)
MISTRAL = _text("mistral", "MistralForCausalLM", _mistral_spec, _mistral_config)
QWEN2 = _text("qwen2", "Qwen2ForCausalLM", lambda c: _qwen_spec("qwen2", c, _QWEN2), _qwen_config)
QWEN3 = _text(
    "qwen3",
    "Qwen3ForCausalLM",
    lambda c: _qwen_spec("qwen3", c, _QWEN3, **_biases(c)),
    lambda spec: _qwen_config(spec) | dict(attention_bias=complete(spec)["qkv_bias"]),
)
