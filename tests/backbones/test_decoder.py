"""The decoder's variants at published sizes: exact parameter counts, without memory; its local layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.build import build
from mmjax.nn.masks import attention_mask


def sizes(vocab, width, depth, heads, kv_heads, head_dim, mlp_width):
    return locals()


DTYPES = dict(dtype=jnp.bfloat16, param_dtype=jnp.float32, remat=False, scan=True)
# Counts as Hugging Face reports them for the published checkpoints.
PUBLISHED = {
    "Llama-2-7B": (6_738_415_616, dict(variant="llama-7b")),
    "Llama-2-13B": (13_015_864_320, dict(variant="llama-13b")),
    "TinyLlama-1.1B": (1_100_048_384, dict(variant="llama", **sizes(32_000, 2048, 22, 32, 4, 64, 5632))),
    "Qwen2-0.5B": (494_032_768, dict(variant="qwen2", tied=True, **sizes(151_936, 896, 24, 14, 2, 64, 4864))),
    "Qwen3-0.6B": (596_049_920, dict(variant="qwen3", tied=True, **sizes(151_936, 1024, 28, 16, 8, 128, 3072))),
    "Gemma-2B": (
        2_506_172_416,
        dict(variant="gemma", embed_scale=2048**0.5, **sizes(256_000, 2048, 18, 8, 1, 256, 16_384)),
    ),
    "Gemma-2-2B": (
        2_614_341_888,
        dict(variant="gemma2", embed_scale=2304**0.5, **sizes(256_000, 2304, 26, 8, 4, 256, 9216)),
    ),
    "Gemma-3-1B": (
        999_885_952,
        dict(variant="gemma3", embed_scale=1152**0.5, **sizes(262_144, 1152, 26, 4, 1, 256, 6912)),
    ),
    "Pythia-160M": (162_322_944, dict(variant="neox", **sizes(50_304, 768, 12, 12, 12, 64, 3072))),
    "MPT-7B": (6_649_286_656, dict(variant="mpt", **sizes(50_432, 4096, 32, 32, 32, 128, 16_384))),
    "Phi-2": (2_779_683_840, dict(variant="phi", **sizes(51_200, 2560, 32, 32, 32, 80, 10_240))),
    "OPT-125M": (
        125_239_296,  # with the two rows that Hugging Face's table of positions has more
        dict(variant="opt", **sizes(50_272, 768, 12, 12, 12, 64, 3072)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    count, spec = PUBLISHED[name]
    decoder = build(dict(type="backbones.decoder.Decoder", xattn=None, **spec), name, **DTYPES)
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), None, method="initialise")["params"])
    assert tree.count(params) == count


TINY = dict(type="backbones.decoder.Decoder", variant="gemma3", embed_scale=4.0, **sizes(11, 16, 3, 2, 1, 8, 16))
TINY |= dict(attention_pattern=("local", "global"), dtype=jnp.float32, param_dtype=jnp.float32)
XATTN = dict(every=2, first=1, norm="layer", gated=False)


def hidden(params, **changes):
    """[1, 9, 16] of one causal row with a picture to look at; without params, these instead."""
    decoder = build(TINY | dict(xattn=XATTN, remat=False, scan=True) | changes, "tiny")
    media = jnp.ones((1, 2, 5))
    if params is None:
        params = decoder.init(jax.random.key(0), media, method="initialise")["params"]
        return jax.tree.map(
            lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
        )
    positions, ones = jnp.arange(9)[None], jnp.ones((1, 9), jnp.int32)
    x = decoder.apply({"params": params}, positions, method="embed")
    mask = attention_mask(positions, ones, positions, ones)
    run = jax.jit(lambda params: decoder.apply(params, x, positions=positions, mask=mask, media=media)[0])
    return run({"params": params})


def test_local_layers_among_cross_attention():
    params = hidden(None)
    near, far = hidden(params, sliding_window=3), hidden(params, sliding_window=9)
    np.testing.assert_allclose(hidden(params, sliding_window=3, scan=False, remat=True), near, atol=1e-5)
    np.testing.assert_allclose(far[:, :3], near[:, :3], atol=1e-5)
    everything = hidden(params, attention_pattern=("global",))
    np.testing.assert_allclose(hidden(params, sliding_window=9, local_rope_theta=0.0), everything, atol=1e-5)
    assert np.abs(far - near).max() > 0.01
    assert np.abs(everything - far).max() > 0.01  # by the other theta alone


@pytest.mark.parametrize("wrong", [dict(attention_pattern=("near",)), dict(sliding_window=0)])
def test_a_wrong_pattern_is_an_error(wrong):
    with pytest.raises(ValueError, match="attention_pattern"):
        hidden(None, **wrong)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_not_rounded_to_the_activations_dtype(tied):
    """bfloat16 numbers near 100 lie 0.5 apart; the float32 product of the same hidden states is finer."""
    spec = dict(variant="llama", xattn=None, tied=tied, additional_vocab=8, **sizes(64, 128, 1, 2, 2, 64, 8))
    decoder = build(dict(type="backbones.decoder.Decoder", **spec), "decoder", **DTYPES)
    params = decoder.init(jax.random.key(0), None, method="initialise")["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    hidden = 100 * jax.random.normal(jax.random.key(1), (3, 128), jnp.bfloat16)
    logits = decoder.apply({"params": params}, hidden, method="logits")
    tables = [params["embedding"].T, params["additional_embedding"].T]
    if not tied:
        tables = [params["head"]["kernel"], params["additional_head"]["kernel"]]
    exact = np.concatenate(
        [np.asarray(hidden).astype(np.float64) @ np.asarray(table, np.float64) for table in tables], axis=1
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
