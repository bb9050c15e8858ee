"""The configs of published sizes, built abstractly: shapes without memory."""

import importlib.util
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.config import build_model, read_config
from mmjax.training.optimizer import make_optimizer
from mmjax.training.setup import parameter_shapes
from mmjax.training.step import find_losses
from mmjax.types import Batch, Media

CONFIGS = Path(__file__).parents[1] / "configs"

# Published: Hugging Face's counts of openai/clip-vit-large-patch14-336 (its vision tower) and of Vicuna-1.5, which
# is Llama 2. Derived: the projector, Linear(1024 -> D) and Linear(D -> D) with biases.
CLIP_336 = 303_507_456
TRAINED = {"7b": ("0.30 %", "95.70 %"), "13b": ("0.24 %", "97.73 %")}
VICUNA = {"7b": 6_738_415_616, "13b": 13_015_864_320}
MLP = {size: 1024 * d + d + d * d + d for size, d in (("7b", 4096), ("13b", 5120))}
# Derived: 2 x (d_in + d_out) x rank 128 / 2 over the seven matrices of each layer. (7b: 319,815,680, as the
# published adapters have.)
LORA = {
    size: layers * 128 * (4 * 2 * d + 3 * (d + hidden))
    for size, layers, d, hidden in (("7b", 32, 4096, 11_008), ("13b", 40, 5120, 13_824))
}
# Derived: a language model has 12 D^2 a layer and its table of 32,000 rows, a resampler layer 12 x 1024^2, and a
# cross-attention block 10 D^2 + 2 x 1024 D.
FLAMINGO = {
    size: dict(
        backbone=layers * 12 * d * d + 32_000 * d,
        xattn=blocks * (10 * d * d + 2 * 1024 * d),
        projectors=6 * 12 * 1024**2,
        encoders=CLIP_336 - (577 - 257) * 1024,
    )
    for size, layers, d, blocks in (("3b", 24, 2048, 24), ("9b", 32, 4096, 8), ("80b", 80, 8192, 12))
}
ALL = [
    *("llava.py:size=7b", "llava.py:size=13b", "llava.py:size=7b,lora=true", "llava.py:size=13b,lora=true"),
    *("flamingo.py:size=3b", "flamingo.py:size=9b", "flamingo.py:size=80b"),
    *("quickstart.py:variant=projector", "quickstart.py:variant=flamingo"),
    *("smol.py:vision=efficientnet", "smol.py:vision=vit", "smol.py:vision=vit,contrast=false,tune=false"),
]
TOKENS = {
    "llava.py": 32_001,
    "flamingo.py": 32_001,
    "smol.py": 49_153,
}  # with <image>


def get_config(name):
    """The raw config of a name such as `llava.py:size=7b`."""
    file, _, arg = name.partition(":")
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg).to_dict()


def tokens_of(config, name):
    """How many tokens the tokenizer of a config has."""
    train = config.tokenizer.get("train")
    return train["vocab_size"] if train else TOKENS[name.partition(":")[0]]


def shapes_of(name):
    """{stage: (shapes of all its parameters, of those it trains)}, and the config and its model."""
    config = read_config(get_config(name))
    model = build_model(config, tokens_of(config, name))
    stages = {}
    for stage in config.stages:
        shapes = parameter_shapes(config, model, stage)
        chosen, _ = tree.partition(shapes, tree.select(stage.trainable, shapes, f"{name} {stage.name}"))
        stages[stage.name] = (shapes, chosen)
    return config, model, stages


@pytest.mark.parametrize("size", VICUNA)
def test_llava_has_the_published_size(size):
    _, _, stages = shapes_of(f"llava.py:size={size}")
    shapes, projector = stages["pretrain"]
    parts = {name: tree.count(part) for name, part in shapes.items()}
    assert (parts["encoders"], parts["projectors"]) == (CLIP_336, MLP[size])
    np.testing.assert_allclose(parts["backbone"], VICUNA[size], rtol=1e-4)  # 64 rows more, for <image>
    _, tuned = stages["sft"]
    assert tree.count(projector) == MLP[size]
    assert tree.count(tuned) == parts["projectors"] + parts["backbone"]
    shares = dict(zip(("pretrain", "sft"), TRAINED[size], strict=True))
    assert show(size, stages) == shares


@pytest.mark.parametrize("size", VICUNA)
def test_llava_lora_trains_adapters_and_projector(size):
    _, _, stages = shapes_of(f"llava.py:size={size},lora=true")
    shapes, trained = stages["lora"]
    assert tree.count(trained) == LORA[size] + MLP[size]
    assert all(re.search(r"^projectors/|^backbone/layers/.*/lora_[ab]$", path) for path in tree.flatten(trained))
    assert sum(path.endswith("lora_a") for path in tree.flatten(shapes)) == 7
    assert show(size, stages)["lora"] == {"7b": "4.62 %", "13b": "3.84 %"}[size]


@pytest.mark.parametrize("size", FLAMINGO)
def test_flamingo_has_the_derived_size(size):
    _, _, stages = shapes_of(f"flamingo.py:size={size}")
    shapes, trained = stages["pretrain"]
    parts = {name: tree.count(part) for name, part in shapes.items()}
    parts["xattn"] = tree.count(shapes["backbone"]["xattn"])
    parts["backbone"] -= parts["xattn"]
    for name, expected in FLAMINGO[size].items():
        np.testing.assert_allclose(parts[name], expected, rtol=0.01, err_msg=name)
    assert tree.count(trained) == parts["projectors"] + parts["xattn"]
    assert show(size, stages)["pretrain"] == {"3b": "42.87 %", "9b": "17.76 %", "80b": "11.36 %"}[size]


def show(size, stages):
    """{stage: share of the parameters that it trains}, printed as well (`pytest -s`)."""
    shares = {}
    for name, (shapes, trained) in stages.items():
        count, total = tree.count(trained), tree.count(shapes)
        shares[name] = f"{100 * count / total:.2f} %"
        print(f"{size} {name}: {count:,} of {total:,} parameters trained, {shares[name]}")
    return shares


@pytest.mark.parametrize("name", ALL)
def test_every_rule_finds_its_parameters(name):
    config, _, stages = shapes_of(name)
    for stage in config.stages:
        _, trained = stages[stage.name]
        make_optimizer(stage.optimizer, stage.steps, trained)
        for key in ("lr_factors", "decay"):
            for pattern, _ in getattr(stage.optimizer, key):
                assert any(re.search(pattern, path) for path in tree.flatten(trained)), (stage.name, key, pattern)
        assert list(find_losses(stage.losses)) == ["image_text" if stage.name == "contrast" else "next_token"]


@pytest.mark.parametrize("name", ALL)
def test_the_full_size_runs_in_the_abstract(name):
    """One row with a picture in every slot: hidden states of the language model's width, in the compute dtype."""
    config, model, stages = shapes_of(name)
    spec = config.stages[-1].data
    row = jax.ShapeDtypeStruct((1, spec.length), jnp.int32)
    media = Media(
        values=jax.ShapeDtypeStruct((1, spec.media.slots, spec.media.size, spec.media.size, 3), jnp.uint8),
        valid=jax.ShapeDtypeStruct((1, spec.media.slots), bool),
        slot=row,
        visible=row,
    )
    batch = Batch(row, row, row, row, jax.ShapeDtypeStruct(row.shape, jnp.float32), {"image": media})
    shapes, _ = stages[config.stages[-1].name]
    hidden = jax.eval_shape(model.apply, shapes, batch).hidden
    assert hidden.shape == (1, spec.length, model.backbone.width)
    assert hidden.dtype == config.precision.compute_dtype


def test_llava_trains_one_epoch_by_the_published_recipe():
    config = read_config(get_config("llava.py:size=7b"))
    pretrain, sft = config.stages
    lora = read_config(get_config("llava.py:size=7b,lora=true")).stage("lora")
    assert (pretrain.batch, pretrain.steps) == (256, math.ceil(558_128 / 256))
    assert (sft.batch, sft.steps) == (lora.batch, lora.steps) == (128, math.ceil(665_298 / 128))
    assert [s.optimizer.lr for s in (pretrain, sft, lora)] == [1e-3, 2e-5, 2e-4]
    assert [s.data.template for s in (pretrain, sft, lora)] == ["plain", "vicuna_v1", "vicuna_v1"]
    for stage in (pretrain, sft, lora):
        shapes = {"projectors": {"kernel": jnp.zeros(1)}, "backbone": {"lora_a": jnp.zeros(1)}}
        optimizer, schedule = make_optimizer(stage.optimizer, stage.steps, shapes)
        warm = math.ceil(0.03 * stage.steps)
        rates = [float(schedule(step)) for step in (0, warm, stage.steps)]
        np.testing.assert_allclose(rates, [0, stage.optimizer.lr, 0], rtol=1e-6, atol=1e-12)
        state = optimizer.init(shapes)
        for _ in range(2):  # an unchanging gradient: updates are the learning rates, the first of them 0
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, shapes), state, shapes)
        ratio = float(updates["projectors"]["kernel"][0] / updates["backbone"]["lora_a"][0])
        np.testing.assert_allclose(ratio, 0.1 if stage is lora else 1.0, rtol=1e-5)


def test_smol_trains_nothing_of_the_language_model_but_adapters():
    """SmolLM2-135M's file has 134,515,008 parameters; a row for <image> is added. Adapters: rank 16 x
    (d_in + d_out) over the four matrices of attention in 30 layers."""
    _, _, stages = shapes_of("smol.py:vision=efficientnet")
    shapes, _ = stages["align"]
    assert tree.count(shapes["backbone"]) == 134_515_008 + 576
    trained = {name: {p: tree.count(part) for p, part in chosen.items()} for name, (_, chosen) in stages.items()}
    projector = 1280 * 576 + 576 * 576 + 3 * 576
    adapters = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192))
    assert trained["contrast"] == trained["align"] == {"projectors": projector}
    assert trained["tune"] == {"projectors": projector, "backbone": adapters}


MISTYPED = ("llava.py:size=8b", "llava.py:sise=7b", "llava.py:lora=yes", "flamingo.py:size=4b")


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_argument_is_refused(name):
    with pytest.raises(ValueError, match=name.partition(":")[2].partition("=")[0]):
        get_config(name)


@pytest.mark.parametrize("name", ALL)
def test_a_token_of_the_tokenizer_has_a_row_in_the_table(name):
    config, model, _ = shapes_of(name)
    assert model.backbone.vocab >= tokens_of(config, name)
