"""Gemma: config.json and name tables (transformers, models/gemma)."""

from __future__ import annotations

from typing import Any

from mmjax.hub.family import Family, Json, complete
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.text import TIED, llama_config, llama_rows, llama_spec

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


def _spec(variant: str, c: Json, defaults: Json) -> dict[str, Any]:
    c = {**defaults, **c}
    if c.get("use_bidirectional_attention"):
        raise CheckpointError("config.json: use_bidirectional_attention is not known here.")
    # Older configs of Gemma say "gelu" and mean its approximation.
    act = "gelu_pytorch_tanh" if c["hidden_act"] == "gelu" else c["hidden_act"]
    bias = c.get("attention_bias", False)
    return llama_spec(
        variant,
        c | dict(hidden_act=act),
        embed_scale=c["hidden_size"] ** 0.5,
        qkv_bias=bias,
        out_bias=bias,
    )


def _config(spec: Json) -> dict[str, Any]:
    full = complete(spec)
    if full["embed_scale"] != full["width"] ** 0.5:
        raise CheckpointError(f"embed_scale is {full['embed_scale']}; Gemma's is the root of the width.")
    return llama_config(spec) | dict(attention_bias=full["qkv_bias"])


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    spec=lambda c: _spec("gemma", c, _GEMMA),
    config=_config,
    rows=llama_rows,
    part="backbone",
    ignored=TIED,
)
