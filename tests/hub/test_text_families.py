"""Text families: our logits are those of `transformers`, and so is every token of 32 generated greedily; weights
survive the way there and back."""

import re

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, randomise, save

from mmjax import tree
from mmjax.convert import export_workdir
from mmjax.inference.sample import generate

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
GROUPED = SIZES | dict(num_key_value_heads=2)
GEMMA2 = GROUPED | dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=5)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
FAMILIES = {
    "llama": (transformers.LlamaConfig, GROUPED),
    "llama-tied-biased": (
        transformers.LlamaConfig,
        GROUPED | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "llama-3.1": (transformers.LlamaConfig, GROUPED | dict(head_dim=16, rope_parameters=LLAMA3)),
    "llama-linear": (
        transformers.LlamaConfig,
        GROUPED | dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0)),
    ),
    "mistral": (transformers.MistralConfig, GROUPED | dict(sliding_window=None)),
    "mistral-sliding": (transformers.MistralConfig, GROUPED | dict(sliding_window=5)),
    "qwen2": (transformers.Qwen2Config, GROUPED),
    "qwen2-sliding-yarn": (
        transformers.Qwen2Config,
        GROUPED | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, rope_parameters=YARN),
    ),
    "qwen3": (transformers.Qwen3Config, GROUPED | dict(head_dim=16)),
    "gemma": (transformers.GemmaConfig, GROUPED | dict(head_dim=16)),
    "gemma2": (transformers.Gemma2Config, GEMMA2),
    "gemma3": (
        transformers.Gemma3TextConfig,
        GEMMA2
        | dict(
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
    ),
}
FAMILIES |= {
    "phi": (transformers.PhiConfig, GROUPED),
    "phi-qk-norm": (transformers.PhiConfig, SIZES | dict(qk_layernorm=True, partial_rotary_factor=0.75)),
    "opt": (transformers.OPTConfig, SIZES | dict(ffn_dim=48)),
    "opt-no-bias": (transformers.OPTConfig, SIZES | dict(ffn_dim=48, enable_bias=False)),
    "neox": (transformers.GPTNeoXConfig, SIZES | dict(rotary_pct=0.5)),
    "neox-serial": (transformers.GPTNeoXConfig, SIZES | dict(use_parallel_residual=False, attention_bias=False)),
    "mpt": (transformers.MptConfig, dict(vocab_size=VOCAB, d_model=32, n_layers=3, n_heads=4, max_seq_len=64)),
    "mpt-six-heads": (
        transformers.MptConfig,
        dict(
            vocab_size=VOCAB,
            d_model=48,
            n_layers=3,
            n_heads=6,
            max_seq_len=64,
            attn_config=dict(softmax_scale=0.3),
        ),
    ),
}
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, VOCAB, n).tolist() for n in (5, 17, 11)]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(their model, ours, its parameters, the folder of `run`, the workdir)."""
    cls, sizes = FAMILIES[request.param]
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(cls(**sizes), dtype=torch.float32))
    folder = tmp_path_factory.mktemp(request.param)
    return theirs, *imported(save(theirs, folder / "hf"), folder / "run"), folder


def test_logits(pair):
    theirs, model, params, _ = pair
    packed = logits(model, params, batch_of([TEXTS[:2], TEXTS[2:]], 24))  # with padding behind
    for ids, (row, begin) in zip(TEXTS, [(0, 0), (0, 5), (1, 0)], strict=True):
        expected = theirs(torch.tensor([ids])).logits[0]
        assert error(packed[row, begin : begin + len(ids)], expected) < TOLERANCE


def test_greedy_generation(pair):
    theirs, model, params, _ = pair
    theirs.generation_config.eos_token_id = None
    settings = dict(max_new=32, temperature=0.0, top_k=0, top_p=1.0, stop=(), pad=0)
    found, _ = generate(model, params, batch_of([[ids] for ids in TEXTS], 17), jax.random.key(0), **settings)
    for row, ids in zip(np.asarray(found), TEXTS, strict=True):
        prompt = dict(inputs=torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)), dtype=torch.int64))
        expected = theirs.generate(**prompt, do_sample=False, max_new_tokens=32, pad_token_id=0)
        assert row.tolist() == expected[0, len(ids) :].tolist()


def test_there_and_back(pair):
    theirs, _, _, folder = pair
    export_workdir(folder / "run", folder / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(folder / "back")
    assert_same_weights(theirs, back)
    ids = torch.tensor(TEXTS[1:2])
    assert torch.equal(theirs(ids).logits, back(ids).logits)


# Of a family: how older checkpoints call a tensor, and what they hold beside.
OLDER = {
    "llama-tied-biased": (r"$", "", {"lm_head.weight": (VOCAB, 32)}),
    "phi": (r"$", "", {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}),
    "opt": (r"^model\.", "", {"lm_head.weight": (VOCAB, 32)}),
    "neox": (
        r"^embed_out\.",
        "lm_head.",
        {f"gpt_neox.layers.1.attention.{n}": (1,) for n in ("bias", "masked_bias")},
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_names(name, tmp_path):
    cls, sizes = FAMILIES[name]
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(cls(**sizes), dtype=torch.float32))
    _, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    pattern, replacement, beside = OLDER[name]
    tensors = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    old = {re.sub(pattern, replacement, key): value for key, value in tensors.items()}
    table = next(
        value for key, value in tensors.items() if "embed_tokens" in key or "embed_in" in key
    )  # which a tied head is again
    old |= {key: table if key.startswith("lm_head") else np.zeros(n, np.float32) for key, n in beside.items()}
    assert set(old) != set(tensors)
    safetensors.numpy.save_file(old, tmp_path / "hf" / "model.safetensors")
    _, again = imported(tmp_path / "hf", tmp_path / "again")
    assert tree.flatten(again).keys() == tree.flatten(params).keys()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, again)))
