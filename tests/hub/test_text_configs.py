"""config.json of text families: both generations of `transformers` say the same; what is not known is refused."""

import pytest

from mmjax.hub.family import complete, config_of, family
from mmjax.hub.tensors import CheckpointError

SIZES = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=64,
)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
# (model_type, what transformers 4 wrote, what transformers 5 writes)
GENERATIONS = {
    "llama3": (
        "llama",
        dict(rope_theta=5e5, rope_scaling=dict(rope_type="llama3", **LLAMA3)),
        dict(rope_parameters=dict(rope_type="llama3", rope_theta=5e5, **LLAMA3)),
    ),
    "linear": (
        "llama",
        dict(rope_theta=1e4, rope_scaling=dict(type="linear", factor=2.0)),
        dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            rope_scaling=dict(rope_type="linear", factor=8.0),
            sliding_window_pattern=3,
        ),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        ),
    ),
    "phi": (
        "phi",
        dict(partial_rotary_factor=0.4, rope_theta=1e4, num_key_value_heads=4),
        dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.4)),
    ),
    "neox": (
        "gpt_neox",
        dict(rotary_pct=0.5, rotary_emb_base=2e4),
        dict(rope_parameters=dict(rope_type="default", rope_theta=2e4, partial_rotary_factor=0.5)),
    ),
}
REFUSED = {
    "longrope": ("llama", dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "longrope"),
    "chunked layers": ("qwen2", dict(layer_types=["chunked_attention"] * 6), "chunked_attention"),
    "local layers without a window": ("qwen3", dict(layer_types=["sliding_attention"] * 6), "sliding_window"),
    "opt-350m": ("opt", dict(do_layer_norm_before=False), "do_layer_norm_before"),
    "opt with a narrow embedding": ("opt", dict(word_embed_proj_dim=16), "word_embed_proj_dim"),
    "clipped mpt": ("mpt", dict(attn_config=dict(clip_qkv=6.0)), "clip_qkv"),
    "mpt without alibi": ("mpt", dict(attn_config=dict(alibi=False)), "alibi"),
    "gemma that looks ahead": ("gemma3_text", dict(use_bidirectional_attention=True), "bidirectional"),
}


@pytest.mark.parametrize("name", GENERATIONS)
def test_both_generations_say_the_same(name):
    model_type, old, new = GENERATIONS[name]
    found = family(model_type)
    spec = found.spec(SIZES | old)
    assert spec == found.spec(SIZES | new)
    assert complete(found.spec(config_of(spec, found))) == complete(spec)


def test_the_pattern_of_layers():
    gemma3 = family("gemma3_text").spec(SIZES | dict(sliding_window_pattern=3, sliding_window=9))
    assert (gemma3["sliding_window"], gemma3["attention_pattern"]) == (9, ["local", "local", "global"])
    qwen = dict(use_sliding_window=True, sliding_window=8, max_window_layers=4)
    assert family("qwen2").spec(SIZES | qwen)["attention_pattern"] == ["global"] * 4 + ["local"] * 2
    assert family("qwen2").spec(SIZES | qwen | dict(use_sliding_window=False))["attention_pattern"] == ["global"]
    assert family("mistral").spec(SIZES | dict(sliding_window=None))["attention_pattern"] == ["global"]
    assert family("mistral").spec(SIZES)["sliding_window"] == 4096  # what its class takes for granted


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    model_type, keys, word = REFUSED[name]
    with pytest.raises(CheckpointError, match=word):
        family(model_type).spec(SIZES | keys)


def test_a_family_that_cannot_say_a_setting_is_not_written():
    spec = family("mistral").spec(SIZES | dict(sliding_window=8))
    with pytest.raises(CheckpointError, match="sliding_window=8"):
        config_of(spec, family("llama"))
