"""PaliGemma: logits of prefixes and replies, and greedy replies, are those of `transformers`."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, randomise, save

from mmjax.convert import export_workdir
from mmjax.inference.sample import generate

IMAGE, SIZE, SPAN = 7, 28, 4
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIZE,
    patch_size=14,
)
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
)


MODELS = {  # text, whether the tower has a head, which here stays aside
    "gemma": ("gemma", False),
    "gemma with a head of SigLIP": ("gemma", True),
    "gemma2": ("gemma2", False),
}


def tiny(text, head):
    config = transformers.PaliGemmaConfig(
        vision_config=VISION | dict(vision_use_head=head),
        text_config=TEXT | dict(model_type=text),
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )
    model = randomise(transformers.PaliGemmaForConditionalGeneration(config))
    model.generation_config.eos_token_id = None
    return model


def prefixed(batch, prefixes):
    """The batch with the first tokens of each example one bidirectional block. prefixes: (row, begin, end)."""
    causal = batch.causal.copy()
    for row, begin, end in prefixes:
        causal[row, begin + 1 : end] = 0
    return dataclasses.replace(batch, causal=causal)


def inputs(example, prefix):
    """An example, list of words and pictures, as `transformers` wants it."""
    shown = [part for part in example if isinstance(part, np.ndarray)]
    ids = [i for part in example for i in ([IMAGE] * SPAN if isinstance(part, np.ndarray) else [part])]
    kinds = [int(i >= prefix) for i in range(len(ids))]
    found = dict(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
    if shown:
        pixels = (np.stack(shown).astype(np.float32) / 255 - 0.5) / 0.5
        found["pixel_values"] = torch.tensor(pixels.transpose(0, 3, 1, 2))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_replies_and_weights_of(name, tmp_path):
    theirs = tiny(*MODELS[name])
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    assert model.tokens_per_medium()["image"] == SPAN
    rng = np.random.default_rng(0)
    one, two, three = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    words = [int(i) for i in rng.integers(8, VOCAB, 40)]
    examples = [[one, two, *words[:7]], words[7:20], [three, *words[20:29]]]
    prefixes, starts = [12, 5, 13], [(0, 0), (0, 15), (1, 0)]
    places = [(row, begin, begin + n) for (row, begin), n in zip(starts, prefixes, strict=True)]
    found = logits(
        model, params, prefixed(batch_of([examples[:2], examples[2:]], 32, SPAN, SIZE, slots=2), places)
    )
    for example, prefix, (row, begin) in zip(examples, prefixes, starts, strict=True):
        expected = theirs(**inputs(example, prefix)).logits[0]
        assert error(found[row, begin : begin + len(expected)], expected) < TOLERANCE

    if name == "gemma":
        prompts = batch_of([[example] for example in examples], 15, SPAN, SIZE, slots=2)
        lengths = (prompts.segments > 0).sum(1)
        prompts = prefixed(prompts, [(row, 0, n) for row, n in enumerate(lengths)])
        rule = dict(max_new=32, temperature=0, top_k=0, top_p=1, stop=(), pad=0)
        replies, _ = generate(model, params, prompts, jax.random.key(0), **rule)
        for example, n, reply in zip(examples, lengths, np.asarray(replies), strict=True):
            known = inputs(example, n)
            expected = theirs.generate(**known, max_new_tokens=32, do_sample=False)
            assert reply.tolist() == expected[0, n:].tolist()
            assert len(set(reply.tolist())) > 4

    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert_same_weights(theirs, back)
    known = inputs(examples[0], 12)
    assert torch.equal(theirs(**known).logits, back(**known).logits)
