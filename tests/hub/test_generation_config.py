"""Converted with a generation_config.json, a model answers as `generate` of transformers does by itself."""

import json

import pytest
import torch
import transformers
from parity import randomise, save
from test_text_families import GROUPED

import mmjax
from mmjax.convert import convert
from mmjax.inference.prompts import ask


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation") / "hf"
    model = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True)))
    save(model, folder)
    return folder


@pytest.mark.parametrize(
    "said",
    [
        dict(max_new_tokens=5),
        dict(max_new_tokens=5, do_sample=False, temperature=5.0, top_k=3),
        dict(max_new_tokens=5, do_sample=True, top_k=1, temperature=2.0),
        dict(max_new_tokens=5, num_beams=4, length_penalty=0.0),
    ],
)
def test_by_default_both_say_the_same(source, said, tmp_path):
    (source / "generation_config.json").write_text(json.dumps(said))
    convert(source, tmp_path / "run")
    assistant = mmjax.load(tmp_path / "run")
    encoded = assistant._encode(ask("w1 w2 w9", []), 5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.tensor(encoded.tokens[None], dtype=torch.long)
    found = theirs.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0)
    assert found.shape[1] == ids.shape[1] + 5
    assert assistant("w1 w2 w9") == assistant.encoder.tokenizer.decode(found[0, ids.shape[1] :].tolist())
