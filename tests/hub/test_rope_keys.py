"""`rope_scaling` beside `rope_parameters` in config.json: which of them counts, as transformers settles it."""

import json

import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, batch_of, error, imported, logits, randomise, save
from small_models import TEXT, WHOLE

LINEAR = dict(rope_type="linear", factor=4.0)
DEFAULT = dict(rope_type="default", rope_theta=700.0)
# (model_type, keys of config.json)
CASES = {
    "scaling alone": ("llama", dict(rope_theta=500.0, rope_scaling=LINEAR)),
    "scaling before default": ("llama", dict(rope_parameters=DEFAULT, rope_scaling=LINEAR)),
    "its theta is not that of the other": (
        "llama",
        dict(rope_theta=90.0, rope_parameters=DEFAULT, rope_scaling=LINEAR),
    ),
    "a theta in both": ("qwen2", dict(rope_parameters=DEFAULT, rope_scaling=LINEAR | dict(rope_theta=60.0))),
    "scaling that is null": ("llama", dict(rope_theta=50.0, rope_parameters=DEFAULT, rope_scaling=None)),
    "scaling that is empty": ("llama", dict(rope_parameters=DEFAULT, rope_scaling={})),
    "default before linear": (
        "llama",
        dict(
            rope_theta=40.0,
            rope_parameters=LINEAR | dict(rope_theta=700.0),
            rope_scaling=dict(rope_type="default"),
        ),
    ),
    "other factors": (
        "qwen3",
        dict(
            head_dim=8,
            rope_parameters=dict(rope_type="yarn", factor=2.0, rope_theta=700.0, beta_fast=8.0),
            rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=32),
        ),
    ),
    "half of the width": (
        "phi",
        dict(
            tie_word_embeddings=False,
            partial_rotary_factor=0.5,
            rope_parameters=DEFAULT | dict(partial_rotary_factor=0.25),
            rope_scaling=LINEAR,
        ),
    ),
    "gemma 3": (
        "gemma3_text",
        dict(
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(full_attention=DEFAULT, sliding_attention=DEFAULT | dict(rope_theta=30.0)),
            rope_scaling=LINEAR,
        ),
    ),
}


def rewritten(folder, keys):
    """The folder with these keys in config.json, and no others that say how positions turn."""
    config = json.loads((folder / "config.json").read_text())
    said = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rope_local_base_freq")
    config = {key: value for key, value in config.items() if key not in said}
    (folder / "config.json").write_text(json.dumps(config | keys))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits(tmp_path, name):
    model_type, keys = CASES[name]
    sizes = TEXT | {key: value for key, value in keys.items() if not key.startswith(("rope", "partial"))}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    folder = save(randomise(transformers.AutoModelForCausalLM.from_config(config)), tmp_path / "hf")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rewritten(folder, keys)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model, params = imported(folder, tmp_path / "run")
    words = [int(i) for i in np.random.default_rng(0).integers(8, VOCAB, 24)]
    expected = theirs(torch.tensor([words])).logits
    assert not torch.allclose(plain(torch.tensor([words])).logits, expected, rtol=1e-3), "the keys change nothing"
    assert error(logits(model, params, batch_of([[words]], len(words))), expected) < TOLERANCE


@torch.no_grad()
def test_logits_of_multimodal_positions(tmp_path):
    config = WHOLE["qwen2_vl"][1]
    made = transformers.Qwen2VLConfig(**config)
    folder = save(randomise(transformers.Qwen2VLForConditionalGeneration(made)), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("rope_theta", None)
    config["text_config"]["rope_parameters"] = DEFAULT | dict(mrope_section=[1, 1, 2])
    config["text_config"]["rope_scaling"] = LINEAR | dict(mrope_section=[1, 1, 2])
    config["text_config"]["rope_theta"] = 90.0
    (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    model, params = imported(folder, tmp_path / "run")
    words = [int(i) for i in np.random.default_rng(0).integers(8, VOCAB, 24)]
    batch = batch_of([[words]], len(words))
    batch = batch.replace(positions=np.repeat(batch.positions[..., None], 3, -1))
    expected = theirs(input_ids=torch.tensor([words])).logits
    assert error(logits(model, params, batch), expected) < TOLERANCE
