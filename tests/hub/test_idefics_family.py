"""Idefics: logits and greedy answers are those of `transformers`, with pictures between the words and without."""

import copy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, randomise, save
from transformers.models.idefics import processing_idefics

from mmjax import tree
from mmjax.convert import export_workdir
from mmjax.data.chat import Chat
from mmjax.data.tokenizer import HFTokenizer
from mmjax.hub.idefics import IDEFICS
from mmjax.hub.load import load_parts, specs_of
from mmjax.hub.table import moves, theirs_specs
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.sample import generate
from mmjax.model import make_model
from mmjax.sharding import make_mesh, shard_tree
from mmjax.types import Sample, Turn

EOS, IMAGE, SIZE, NEW = 2, VOCAB - 1, 28, 32
VISION = dict(
    embed_dim=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIZE,
    patch_size=14,
)
PERCEIVER = dict(resampler_n_latents=3, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=8)
TEXT = dict(
    hidden_size=48,
    intermediate_size=64,
    num_attention_heads=4,
    max_position_embeddings=64,
    use_resampler=True,
)
VARIANTS = {
    # As published: two new tokens, one gate a block, norms of the resampler's queries and keys.
    "published": (
        dict(additional_vocab_size=2, num_hidden_layers=4, cross_layer_interval=2, alpha_type="float"),
        dict(qk_layer_norms_perceiver=True),
    ),
    "other": (
        dict(
            additional_vocab_size=3,
            num_hidden_layers=2,
            alpha_type="vector",
            qk_layer_norms=True,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        dict(resampler_depth=1),
    ),
}


def tiny(more, perceiver):
    config = transformers.IdeficsConfig(
        vision_config=VISION,
        perceiver_config=PERCEIVER | perceiver,
        vocab_size=VOCAB - more.get("additional_vocab_size", 0),
        **TEXT,
        **more,
    )
    return randomise(transformers.IdeficsForVisionText2Text(config))


def inputs_of(example, encoder):
    """Ids, pixels [1, M, 3, H, W], and which pictures a token sees by the mask of the processor."""
    ids = torch.tensor([[part for part in example if not isinstance(part, np.ndarray)]])
    shown = [part for part in example if isinstance(part, np.ndarray)] or [np.zeros((SIZE, SIZE, 3), np.uint8)]
    tokenizer = types.SimpleNamespace(convert_tokens_to_ids=lambda _: IMAGE, eos_token_id=EOS)
    seen, _ = processing_idefics.image_attention_mask_for_packed_input_ids(ids, tokenizer, "pt")
    mask = processing_idefics.incremental_to_binary_attention_mask(seen, "pt", num_classes=len(shown))
    values = (np.stack(shown).astype(np.float32) / 255 - np.float32(encoder.mean)) / np.float32(encoder.std)
    pixels = torch.tensor(values.transpose(0, 3, 1, 2))[None]
    return dict(input_ids=ids, pixel_values=pixels, image_attention_mask=mask, attention_mask=torch.ones_like(ids))


@pytest.fixture(scope="module")
def examples():
    """Two pictures with text around them, no picture, and one picture first."""
    rng = np.random.default_rng(0)
    one, two, three = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    words = [int(i) for i in rng.integers(8, VOCAB - 2, 40)]
    return [
        [*words[:3], one, IMAGE, *words[3:8], two, IMAGE, *words[8:12]],
        words[12:22],
        [three, IMAGE, *words[22:27]],
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_answers_and_weights_of(name, examples, tmp_path):
    theirs = tiny(*VARIANTS[name])
    model, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    encoder = model.encoders["image"]

    packed = batch_of([examples[:2], examples[2:]], 32, size=SIZE, slots=3)
    found = logits(model, params, packed)
    inputs = [inputs_of(example, encoder) for example in examples]
    begin = 0
    for row, one in zip((0, 0, 1), inputs, strict=True):
        begin = 0 if one is inputs[2] else begin
        end = begin + one["input_ids"].shape[1]
        with torch.no_grad():
            assert error(found[row, begin:end], theirs(**one).logits[0]) < TOLERANCE
            if one["image_attention_mask"].any():  # and the pictures matter
                blind = one | dict(image_attention_mask=torch.zeros_like(one["image_attention_mask"]))
                assert np.abs(found[row, begin:end] - theirs(**blind).logits[0].numpy()).max() > 0.02
        begin = end

    if name == "published":
        answers_are_those_of(theirs, inputs, model, params, examples)

    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert_same_weights(theirs, back)
    with torch.no_grad():
        assert torch.equal(theirs(**inputs[0]).logits, back(**inputs[0]).logits)


def answers_are_those_of(theirs, inputs, model, params, examples):
    """32 tokens each, greedily, prompts of different lengths and pictures read at once."""
    alone = batch_of([[example] for example in examples], 16, size=SIZE, slots=2)
    settings = dict(max_new=NEW, temperature=0.0, top_k=0, top_p=1.0, stop=(), pad=0)
    answers, _ = generate(model, params, alone, jax.random.key(0), **settings)
    for answer, one in zip(np.asarray(answers), inputs, strict=True):
        theirs.generation_config.eos_token_id = None
        expected = theirs.generate(**one, max_new_tokens=NEW, do_sample=False)[0, one["input_ids"].shape[1] :]
        assert answer.tolist() == expected.tolist()


def test_names_and_shapes_at_the_published_size():
    """HuggingFaceM4/idefics-9b, in the abstract."""
    config = dict(
        model_type="idefics",
        additional_vocab_size=2,
        cross_layer_interval=4,
        qk_layer_norms=True,
        use_resampler=True,
        vision_config=dict(embed_dim=1280),
        perceiver_config=dict(qk_layer_norms_perceiver=True),
    )
    with torch.device("meta"):
        theirs = transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig(**config)).state_dict()
    spec = IDEFICS.spec(config)  # as old checkpoints have it: without the keys that are as ever
    model = make_model(spec, dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert tree.count(shapes) == 8_929_679_632
    ours = theirs_specs(moves(IDEFICS.rows(spec), shapes), specs_of(shapes))
    assert {name: one.shape for name, one in ours.items()} == {n: tuple(one.shape) for n, one in theirs.items()}


def test_what_idefics_cannot_say_is_refused(tmp_path):
    config = transformers.IdeficsConfig(vision_config=VISION, perceiver_config=PERCEIVER, **TEXT).to_dict()
    for changed in (dict(use_resampler=False), dict(cross_layer_interval=5), dict(alpha_type="both")):
        with pytest.raises(CheckpointError, match=next(iter(changed))):
            IDEFICS.spec(config | changed)
    spec = IDEFICS.spec(config)
    assert IDEFICS.config(spec)["perceiver_config"]["resampler_n_latents"] == 3
    for part, changed in (("projectors", dict(activation="gelu")), ("backbone", dict(kv_heads=2))):
        other = copy.deepcopy(spec)
        (other["backbone"] if part == "backbone" else other[part]["image"]).update(changed)
        with pytest.raises(CheckpointError, match=f"model.{part}.*{next(iter(changed))}"):
            IDEFICS.config(other)
    with pytest.raises(CheckpointError, match="has 'xattn', not 'splice'"):
        IDEFICS.rows(spec | dict(fusion="splice"))


def test_our_chat_lets_a_token_see_what_the_processor_does(tmp_path):
    save(types.SimpleNamespace(save_pretrained=lambda folder: None), tmp_path)
    tokenizer = HFTokenizer(tmp_path / "tokenizer.json", extra=["<image>", "</s>"], eos="</s>")
    turns = [
        ("user", "w9 <image> w10 <image>"),
        ("assistant", "w11"),
        ("user", "w12 <image> w13"),
        ("assistant", "w14"),
    ]
    sample = Sample("1", tuple(Turn(*turn) for turn in turns), (b"",) * 3)
    encoded = Chat("plain", tokenizer, span=1, splice=False).encode(sample)
    assert encoded.visible.max() == 2 and (encoded.slot == -1).all()
    theirs = types.SimpleNamespace(convert_tokens_to_ids=tokenizer.special, eos_token_id=tokenizer.eos)
    ids = torch.tensor(encoded.tokens[None])
    seen, _ = processing_idefics.image_attention_mask_for_packed_input_ids(ids, theirs, "pt")
    assert encoded.visible.tolist() == seen[0].tolist()


def test_a_language_model_by_itself_leaves_cross_attention_from_scratch(tmp_path):
    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCAB - 2, **sizes))
    randomise(llama).save_pretrained(tmp_path / "llama")
    theirs = tiny(VARIANTS["other"][0] | dict(additional_vocab_size=2, tie_word_embeddings=False), {})
    _, params = imported(save(theirs, tmp_path / "hf"), tmp_path / "run")
    shapes = jax.eval_shape(lambda: params)
    places = shard_tree(shapes, make_mesh({"data": 1}))

    loaded = load_parts([("backbone", f"hf:{tmp_path / 'llama'}")], shapes, places)["backbone"]
    assert set(params["backbone"]) - set(loaded) == {"xattn", "additional_embedding", "additional_head"}
    table = llama.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(loaded["embedding"], table)
    whole = load_parts([("backbone", f"hf:{tmp_path / 'hf'}")], shapes, places)["backbone"]
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, params["backbone"]))
