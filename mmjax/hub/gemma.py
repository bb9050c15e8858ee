"""Gemma, Gemma 2 and 3: config.json and name tables (transformers, models/gemma, gemma2, gemma3)."""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete
from mmjax.hub.positions import layer_types, layers_of, rope_parameters, scaling_of
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import ALONE, BUFFERS, llama_config, llama_rows, llama_spec

# What config.json means by a key that it lacks.
_GEMMA = dict(
    vocab_size=256_000,
    hidden_size=3072,
    intermediate_size=24_576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    rms_norm_eps=1e-6,
    hidden_act="gelu_pytorch_tanh",
    tie_word_embeddings=True,
)


_GEMMA2 = _GEMMA | dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    sliding_window_pattern=2,
)
_GEMMA3 = _GEMMA2 | dict(
    vocab_size=262_208,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    sliding_window_pattern=6,
    max_position_embeddings=131_072,
)


def _spec(variant: str, c: Json, **more: Any) -> dict[str, Any]:
    if c.get("use_bidirectional_attention"):
        raise CheckpointError("config.json: use_bidirectional_attention is not known here.")
    act = c.get("hidden_activation") or c["hidden_act"]
    # Older configs of Gemma say "gelu" and mean its approximation.
    act = "gelu_pytorch_tanh" if variant == "gemma" and act == "gelu" else act
    bias = c.get("attention_bias", False)
    scale = c["hidden_size"] ** 0.5
    return llama_spec(variant, c | dict(hidden_act=act), embed_scale=scale, qkv_bias=bias, out_bias=bias, **more)


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    if full["embed_scale"] != full["width"] ** 0.5:
        raise CheckpointError(f"embed_scale is {full['embed_scale']}; Gemma's is the root of the width.")
    made = llama_config(spec)
    return made | dict(hidden_activation=made["hidden_act"], attention_bias=full["qkv_bias"])


def _spec2(variant: str, c: Json, **more: Any) -> dict[str, Any]:
    every = c["sliding_window_pattern"]
    types = c.get("layer_types") or [
        "full_attention" if i % every == every - 1 else "sliding_attention" for i in range(c["num_hidden_layers"])
    ]
    return _spec(
        variant,
        c,
        query_scale=c["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=c["attn_logit_softcapping"] or 0.0,
        logit_softcap=c["final_logit_softcapping"] or 0.0,
        **layers_of(types, c["sliding_window"]),
        **more,
    )


def _config2(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    scalar = full["query_scale"] ** -2 if full["query_scale"] else full["head_dim"]
    return _config(spec) | dict(
        query_pre_attn_scalar=round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        attn_logit_softcapping=full["attention_softcap"] or None,
        final_logit_softcapping=full["logit_softcap"] or None,
        sliding_window=full["sliding_window"] or None,
        layer_types=layer_types(full),
    )


def _spec3(c: Json) -> dict[str, Any]:
    c = {**_GEMMA3, **c}
    if c["attn_logit_softcapping"]:
        raise CheckpointError("config.json: attn_logit_softcapping means nothing to Gemma 3.")
    rope = c.get("rope_parameters") or {}
    far, near = (dict(rope.get(kind) or {}) for kind in ("full_attention", "sliding_attention"))
    far |= c.get("rope_scaling") or {}
    if scaling_of(near, c):
        raise CheckpointError("config.json: local layers with scaled rotary positions are not known here.")
    return _spec2(
        "gemma3",
        {key: value for key, value in c.items() if key not in ("rope_parameters", "rope_scaling")},
        rope_theta=float(far.get("rope_theta") or c.get("rope_theta") or 1e6),
        rope_scaling=scaling_of(far, c),
        local_rope_theta=float(near.get("rope_theta") or c.get("rope_local_base_freq") or 1e4),
    )


def _config3(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    local = full["local_rope_theta"] or full["rope_theta"]
    far = dict(rope_type="default", rope_theta=full["rope_theta"]) | rope_parameters(full["rope_scaling"])
    near = dict(rope_type="default", rope_theta=local)
    return _config2(spec) | dict(
        rope_parameters=dict(full_attention=far, sliding_attention=near), rope_local_base_freq=local
    )


def _family(model_type: str, architecture: str, spec: Any, config: Any) -> Family:
    common = dict(rows=llama_rows, part="backbone", renames=ALONE, ignored=BUFFERS)
    return Family(model_type, architecture, spec, config, **common)


GEMMA = _family("gemma", "GemmaForCausalLM", lambda c: _spec("gemma", {**_GEMMA, **c}), _config)
GEMMA2 = _family("gemma2", "Gemma2ForCausalLM", lambda c: _spec2("gemma2", {**_GEMMA2, **c}), _config2)
GEMMA3 = _family("gemma3_text", "Gemma3ForCausalLM", _spec3, _config3)
