"""A converted checkpoint trains and talks on one accelerator: what is trained, and how, follows from its size."""

import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from prompt_folders import published
from safetensors.torch import load_file, save_file
from tiled import picture

import mmjax
from mmjax import convert as conversion
from mmjax import recipes, tree
from mmjax.config import build_model, read_config
from mmjax.hub.family import family
from mmjax.hub.fit import ACCELERATOR, ROOM, fit
from mmjax.nn.linear import add_lora
from mmjax.training.optimizer import make_optimizer
from mmjax.training.stages import train
from mmjax.training.state import make_state
from mmjax.types import Sample, Turn
from mmjax.workdir import read_raw

SIZES = {
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


def whole(model_type, size, length):
    """What `mmjax convert` would write of a published checkpoint, if it trained all of it; and its shapes."""
    text = transformers.LlamaConfig(**SIZES[size], num_key_value_heads=SIZES[size]["num_attention_heads"])
    kind = transformers.LlavaConfig if model_type == "llava" else transformers.LlavaNextConfig
    text.vocab_size = 32_064
    config = json.loads(kind(text_config=text).to_json_string(use_diff=False))
    section = family(model_type).spec(config)
    section["encoders"]["image"] |= dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    data = recipes.data(
        dict(main=recipes.source("")), recipes.pictures(336, slots=4), template="text", length=length
    )
    raw = recipes.run(
        section,
        dict(type="data.tokenizer.HFTokenizer", path="tokenizer.json"),
        dict(sft=recipes.stage(data, recipes.adamw(2e-5), batch=32, steps=1000)),
        compute_dtype="float32",
        frozen_dtype="float32",
        remat=False,
    )
    return raw, shapes_of(raw)


def shapes_of(raw):
    return jax.eval_shape(build_model(read_config(raw), 0).init, jax.random.key(0))


def state_of(raw, shapes):
    """The state that its stage begins with, abstractly."""
    config = read_config(raw)
    stage = config.stage("sft")

    def begin():
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        params = add_lora(params, stage.lora, jax.random.key(0))
        trainable, _ = tree.partition(params, tree.select(stage.trainable, params, "trainable"))
        optimizer, _ = make_optimizer(stage.optimizer, stage.steps, trainable, "sft.optimizer")
        dtype = jnp.dtype(config.precision.frozen_dtype)
        return make_state(params, stage.trainable, optimizer, jax.random.key(0), frozen_dtype=dtype, ema=False)

    return jax.eval_shape(begin)


def bytes_of(values):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize(
    ("model_type", "length", "rows"), [("llava", 2048, 8), ("llava_next", 4096, 4)], ids=["llava", "llava_next"]
)
def test_seven_billion_parameters_train_on_one_accelerator(model_type, length, rows):
    raw, shapes = whole(model_type, "7b", length)
    chosen = fit(raw, shapes)
    assert 112e9 < chosen.full < 114e9 and chosen.total == tree.count(shapes)
    assert (chosen.rows, chosen.raw["sft"]["batch"], chosen.raw["sft"]["accumulate"]) == (rows, 32, 32 // rows)
    state = state_of(chosen.raw, shapes)
    held = bytes_of(state.params) + bytes_of(state.params) + bytes_of(state.optimizer) + bytes_of(state.frozen)
    row = 2 * length * 4096 * 32  # what goes into each layer, without which no row can be trained
    assert held + rows * row < chosen.peak <= ROOM < ACCELERATOR and held < 21e9
    assert tree.count(state.params) == chosen.trained
    assert {path.split("/")[0] for path in tree.flatten(state.params)} == {"projectors", "backbone"}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert read_config(chosen.raw).remat
    for word in ("7.06 billion", "113 GB", f"{rows} of 32 rows", "sft.lora", "precision", "remat"):
        assert word in chosen.reason()


def test_what_one_accelerator_does_not_hold_is_said():
    chosen = fit(*whole("llava", "13b", 2048))
    assert chosen.peak > ROOM and "train on several" in chosen.reason()


def test_a_small_model_is_trained_in_full():
    raw, shapes = whole("llava", "7b", 2048)
    chosen = fit(raw, shapes, largest=200e9)
    assert chosen.raw == raw and "trains all of them in float32, 113 GB" in chosen.reason()


def test_rules_find_the_parameters_of_other_families(tmp_path):
    for name in ("Idefics", "OPT", "Qwen2-VL", "PaliGemma"):
        (tmp_path / name).mkdir()
        published(name, tmp_path / name)
        conversion.convert(tmp_path / name, tmp_path / f"{name}-run")
        raw = read_raw(tmp_path / f"{name}-run")
        shapes = shapes_of(raw)
        chosen = fit(raw, shapes, largest=0)
        assert tree.count(state_of(chosen.raw, shapes).params) == chosen.trained, name


@pytest.mark.parametrize("family_name", ["LLaVA-1.5", "Qwen2-Instruct"])
def test_a_checkpoint_over_the_bound_trains_and_talks(family_name, tmp_path, monkeypatch, caplog):
    (tmp_path / "hf").mkdir()
    published(family_name, tmp_path / "hf")
    monkeypatch.setattr(conversion, "fit", lambda raw, shapes: fit(raw, shapes, largest=0))
    with caplog.at_level(logging.INFO):
        conversion.convert(tmp_path / "hf", tmp_path / "run")
    assert "frozen in bfloat16" in caplog.text
    raw = read_raw(tmp_path / "run")
    before = mmjax.load(tmp_path / "run").params
    shown = bool(raw["model"]["encoders"])
    turns = [{"from": "human", "value": "<image>\n" * shown + "the fox"}, {"from": "gpt", "value": "a dog"}]
    rows = [dict(id=str(i), conversations=turns, **(dict(image="one.png") if shown else {})) for i in range(8)]
    picture((60, 40)).save(tmp_path / "one.png")
    (tmp_path / "data.json").write_text(json.dumps(rows))
    raw["sft"]["data"]["sources"]["main"] |= dict(path=str(tmp_path / "data.json"), root=str(tmp_path))
    raw["sft"]["data"] |= dict(workers=0, length=64 + raw["sft"]["data"]["length"] % 64)
    raw["sft"] |= dict(steps=2)
    train(raw, tmp_path / "run")
    after = mmjax.load(tmp_path / "run").params
    moved = set()
    for path, leaf in tree.flatten(before).items():
        trained = path.startswith("projectors/")  # in float32; the rest was rounded to bfloat16
        old, new = (leaf if trained else leaf.astype("bfloat16")), tree.flatten(after)[path]
        if not np.array_equal(np.asarray(old, np.float32), np.asarray(new, np.float32)):
            moved.add(re.sub(r"^projectors/.*|(?<=layers)/.*", "", path))
    assert moved == {"backbone/layers", *([""] if shown else [])}


CAME = [("LLaVA-1.5", "float16"), ("Idefics", "float16"), ("Gemma-2", "bfloat16"), ("Qwen2-VL", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), CAME)
def test_weights_keep_the_dtype_they_came_in(name, dtype, tmp_path):
    """... and give the tokens and scores that the same weights in float32 give."""
    (tmp_path / "hf").mkdir()
    published(name, tmp_path / "hf")
    _recast(tmp_path / "hf", dtype)
    conversion.convert(tmp_path / "hf", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | dict(precision=raw["precision"] | dict(frozen_dtype="bfloat16"))))
    kept = mmjax.load(tmp_path / "run")
    file.write_text(json.dumps(raw))
    wide = mmjax.load(tmp_path / "run")
    kinds = {leaf.dtype for leaf in jax.tree.leaves(kept.params)}
    assert kinds == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {jnp.dtype("float32")}
    pictures = (picture((60, 40)),) if kept.model.encoders else ()
    sample = Sample("one", (Turn("user", "<image>\n" * len(pictures) + "the fox"),), pictures)
    scores = [one.score(sample, ["a dog", "cat"]) for one in (kept, wide)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


def _recast(folder, dtype):
    """Writes a checkpoint's tensors anew in another dtype."""
    for file in folder.glob("*.safetensors"):
        tensors = {name: one.to(getattr(torch, dtype)) for name, one in load_file(file).items()}
        save_file(tensors, file, metadata=dict(format="pt"))
