"""Adapters: `peft` puts them onto the checkpoint that they were trained on, and gives our logits."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, batch_of, error, imported, logits, save
from test_llava_family import IMAGE, SIZE, pixels, tiny

from mmjax import tree
from mmjax.config import Adapter
from mmjax.hub.family import family
from mmjax.hub.peft import write_adapter
from mmjax.hub.tensors import CheckpointError
from mmjax.nn.linear import add_lora, merge_lora
from mmjax.workdir import load_config

peft = pytest.importorskip("peft")
RULES = [
    (r"backbone/layers/attention/(query|value)/kernel", Adapter(rank=4, alpha=8)),
    (r"backbone/layers/mlp/down/kernel", Adapter(rank=2, alpha=8)),
    (r"projectors/image/linear_1/kernel", Adapter(rank=3, alpha=3)),
]


def test_a_llava_with_adapters(tmp_path):
    theirs = tiny("clip_vision_model", "llama", "default")
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    spec, llava = load_config(tmp_path / "run").model, family("llava")
    with pytest.raises(CheckpointError, match="no LoRA adapters"):
        write_adapter(tmp_path / "none", llava, spec, params, "")

    params = add_lora(params, RULES, jax.random.key(0))
    noise = np.random.default_rng(0)
    params = tree.map_paths(
        lambda path, x: x + noise.normal(size=x.shape).astype(x.dtype) if path.endswith("lora_b") else x, params
    )
    assert write_adapter(tmp_path / "adapter", llava, spec, params, str(tmp_path / "hf")) == 2 * 3 + 1
    assert_served_as_trained(tmp_path, theirs, model, params)


# Parameters that are trained in full beside adapters of the language model.
WHOLE = {
    "projector": ("^projectors/", 2),
    "norms, embedding and head": ("^backbone/(.*norm.*/scale$|embedding|head)", 2 + 2 * 2 + 1),
    "a bias alone": ("linear_1/bias$", 1),
    "vision tower": ("^encoders/", 1 + 2 + 3 * 8),  # embeddings, norms before and behind, layers
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_was_trained_in_full_goes_into_the_adapter(tmp_path, name):
    pattern, modules = WHOLE[name]
    theirs = tiny("clip_vision_model", "llama", "default")
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    spec = load_config(tmp_path / "run").model
    trained = [path for path in tree.flatten(params) if re.search(pattern, path)]
    noise = np.random.default_rng(0)

    def changed(path, x):
        moved = path.endswith("lora_b") or path in trained
        return x + 0.3 * noise.normal(size=x.shape).astype(x.dtype) if moved else x

    params = tree.map_paths(changed, add_lora(params, RULES[:2], jax.random.key(0)))
    write_adapter(tmp_path / "adapter", family("llava"), spec, params, str(tmp_path / "hf"), trained)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert len(config["modules_to_save"]) == modules
    assert_served_as_trained(tmp_path, theirs, model, params)


@pytest.mark.parametrize(
    "path, why",
    [
        ("projectors/image/linear_1/bias", "a module with adapters"),
        ("backbone/embedding", "tied to the head"),
        ("backbone/xattn/gate", "no tensor for it"),
    ],
)
def test_what_peft_cannot_hold_is_named(tmp_path, path, why):
    theirs = tiny("clip_vision_model", "llama", "default")
    _, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    spec = json.loads(json.dumps(load_config(tmp_path / "run").model))
    spec["backbone"]["tied"] = "embedding" in path
    params = add_lora(params, RULES, jax.random.key(0))
    with pytest.raises(CheckpointError, match=f"{path}: .*{why}"):
        write_adapter(tmp_path / "adapter", family("llava"), spec, params, "", [path])
    assert not (tmp_path / "adapter").exists()


def assert_served_as_trained(tmp_path, theirs, model, params):
    """The checkpoint in hf/ with the adapter in adapter/ gives the logits of our parameters, merged or not."""
    base = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    words = [int(i) for i in rng.integers(8, VOCAB, 9)]
    encoder = model.encoders["image"]
    ids = [*words[:3], *[IMAGE] * 4, *words[3:]]
    shown = pixels([picture], encoder.mean, encoder.std)
    expected = adapted(input_ids=torch.tensor([ids]), pixel_values=shown).logits[0]
    plain = theirs(input_ids=torch.tensor([ids]), pixel_values=shown).logits[0]
    assert not torch.allclose(plain, expected, rtol=0.1)
    batch = batch_of([[[*words[:3], picture, *words[3:]]]], len(ids), 4, SIZE, slots=1)
    assert error(logits(model, params, batch)[0], expected) < TOLERANCE
    assert error(logits(model, merge_lora(params), batch)[0], expected) < TOLERANCE
