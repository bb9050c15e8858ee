"""LLaVA-1.5: our logits are those of `transformers`, on several pictures, none, padding and packed rows."""

import jax
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, randomise, save

from mmjax.convert import export_workdir
from mmjax.hub.aside import listed
from mmjax.hub.folder import HubFolder
from mmjax.hub.llava import strategy_of
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder
from mmjax.inference.sample import generate

IMAGE, SIZE, SPAN = 7, 28, 4
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=SIZE,
    patch_size=14,
)
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
PARTS = {
    "clip-llama": ("clip_vision_model", "llama", "default"),
    "clip-mistral-full": ("clip_vision_model", "mistral", "full"),
    "clip-qwen2": ("clip_vision_model", "qwen2", "default"),
    "siglip-qwen2": ("siglip_vision_model", "qwen2", "full", -1),
    "dinov2-llama": ("dinov2", "llama", "default", 1),
}
ASIDE = {  # what no parameter stands for: SigLIP's head and its last norm, DINOv2's mask token
    "siglip-qwen2": ("head", 11 + 2),
    "dinov2-llama": ("mask_token", 1),
}


def tiny(vision, text, strategy, layer=-2):
    config = transformers.LlavaConfig(
        vision_config=dict(model_type=vision, **VISION),
        text_config=dict(model_type=text, **TEXT),
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    return randomise(transformers.LlavaForConditionalGeneration(config))


def pixels(pictures, mean, std):
    values = (np.stack(pictures).astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.tensor(values.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", PARTS)
def test_logits_and_weights_of(name, tmp_path):
    theirs = tiny(*PARTS[name])
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    span = model.tokens_per_medium()["image"]
    assert span == SPAN + (name == "clip-mistral-full")
    if name in ASIDE:
        names = SafetensorsFolder(tmp_path / "run" / "hub" / "aside").specs
        assert ASIDE[name][0] in listed(names)
        assert len(names) == ASIDE[name][1]

    rng = np.random.default_rng(0)
    one, two, three = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    words = [int(i) for i in rng.integers(8, VOCAB, 40)]
    examples = [
        [*words[:3], one, *words[3:8], two, *words[8:12]],
        words[12:25],
        [three, *words[25:30]],
    ]
    found = logits(model, params, batch_of([examples[:2], examples[2:]], 48, span, SIZE, slots=2))
    encoder = model.encoders["image"]
    begin = 0
    for row, example in zip((0, 0, 1), examples, strict=True):
        begin = 0 if example is examples[2] else begin
        shown = [part for part in example if isinstance(part, np.ndarray)]
        ids = [i for part in example for i in ([IMAGE] * span if isinstance(part, np.ndarray) else [part])]
        media = dict(pixel_values=pixels(shown, encoder.mean, encoder.std)) if shown else {}
        expected = theirs(input_ids=torch.tensor([ids]), **media).logits[0]
        assert error(found[row, begin : begin + len(ids)], expected) < TOLERANCE
        begin += len(ids)
    if name == "clip-llama":
        assert_same_answers(theirs, model, params, examples, span)

    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert_same_weights(theirs, back)
    assert torch.equal(theirs(torch.tensor([examples[1]])).logits, back(torch.tensor([examples[1]])).logits)


def assert_same_answers(theirs, model, params, examples, span):
    """32 greedy tokens behind each example, all of them as one batch of ours."""
    prompts = batch_of([[example] for example in examples], 24, span, SIZE, slots=2)
    rule = dict(max_new=32, temperature=0, top_k=0, top_p=1, stop=(), pad=0)
    answers, _ = generate(model, params, prompts, jax.random.key(0), **rule)
    encoder = model.encoders["image"]
    theirs.generation_config.eos_token_id = None
    for example, answer in zip(examples, np.asarray(answers), strict=True):
        shown = [part for part in example if isinstance(part, np.ndarray)]
        ids = torch.tensor([[i for p in example for i in ([IMAGE] * span if isinstance(p, np.ndarray) else [p])]])
        given = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        if shown:
            given["pixel_values"] = pixels(shown, encoder.mean, encoder.std)
        expected = theirs.generate(**given, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
        assert answer.tolist() == expected.tolist()


def test_features_that_llava_has_not_are_refused(tmp_path):
    tiny("siglip_vision_model", "llama", "default").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="only 'full' is known for this encoder"):
        HubFolder(tmp_path)
    encoder = dict(type="encoders.vit.ViT", variant="clip-L/14", layer=-1, pool="none")
    with pytest.raises(CheckpointError, match="set final_norm=False"):
        strategy_of(encoder)
    assert strategy_of(encoder | dict(final_norm=False)) == "default"
    with pytest.raises(CheckpointError, match="pool='cls'"):
        strategy_of(encoder | dict(layer=-2, pool="cls"))
