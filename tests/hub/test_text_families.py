"""Text families: our logits are those of `transformers`, and weights survive the way there and back."""

import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, randomise, save

from mmjax.convert import export_workdir

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
GROUPED = SIZES | dict(num_key_value_heads=2)
FAMILIES = {
    "llama": (transformers.LlamaConfig, GROUPED),
    "llama-tied-biased": (
        transformers.LlamaConfig,
        GROUPED | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "mistral": (transformers.MistralConfig, GROUPED | dict(sliding_window=None)),
    "qwen2": (transformers.Qwen2Config, GROUPED),
    "qwen3": (transformers.Qwen3Config, GROUPED | dict(head_dim=16)),
    "gemma": (transformers.GemmaConfig, GROUPED | dict(head_dim=16)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_weights_of(name, tmp_path):
    cls, sizes = FAMILIES[name]
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(cls(**sizes), dtype=torch.float32))
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")

    rng = np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB, n).tolist() for n in (5, 17, 11)]
    packed = logits(model, params, batch_of([texts[:2], texts[2:]], 24))  # with padding behind
    starts = [(0, 0), (0, 5), (1, 0)]
    for ids, (row, begin) in zip(texts, starts, strict=True):
        expected = theirs(torch.tensor([ids])).logits[0]
        assert error(packed[row, begin : begin + len(ids)], expected) < TOLERANCE

    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert_same_weights(theirs, back)
    ids = torch.tensor(texts[1:2])
    assert torch.equal(theirs(ids).logits, back(ids).logits)
