"""LLaVA-NeXT, Idefics3, SmolVLM and InternVL: from `mmjax convert` by way of packed rows to the logits and the
greedy answers of `transformers`, with pictures of several shapes, and back to the same weights."""

import jax
import numpy as np
import pytest
import tiled
import torch
import transformers
from parity import TOLERANCE, assert_same_weights, error, logits, randomise

from mmjax.config import build_model
from mmjax.convert import export_workdir, import_folder
from mmjax.data.pipeline import make_dataset
from mmjax.hub.family import find_family
from mmjax.hub.image_processor import complete_settings
from mmjax.hub.load import load_parts
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.chat import Assistant, Sampling
from mmjax.sharding import make_mesh, shard_tree
from mmjax.types import Sample, Turn
from mmjax.workdir import keep_tokenizer, load_config, read_raw

WIDE, TALL, SMALL = (tiled.picture(size, seed) for seed, size in enumerate([(150, 60), (70, 100), (40, 50)]))
CONVERSATIONS = [
    ("<image>what is it?", "a b c", [WIDE]),
    ("no picture", "indeed", []),
    ("a <image> or <image>", "both", [SMALL, TALL]),
    ("and<image>?", "yes", [TALL]),
]
NEW = 32


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=dict(model_type="clip_vision_model", **tiled.VISION),
        text_config=dict(model_type="llama", **tiled.TEXT),
        image_token_index=tiled.IMAGE,
        image_grid_pinpoints=tiled.PINPOINTS,
    )
    return transformers.LlavaNextForConditionalGeneration(config), tiled.llava_next()


def idefics3(kind="Idefics3", **more):
    config = getattr(transformers, f"{kind}Config")(
        vision_config=tiled.VISION,
        text_config=dict(model_type="llama", **tiled.TEXT),
        image_token_id=tiled.IMAGE,
        scale_factor=2,
        **more,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), tiled.idefics3()


def internvl(text="qwen2", tied=True, **vision):
    config = transformers.InternVLConfig(
        vision_config=tiled.VISION | vision,
        text_config=dict(model_type=text, **tiled.TEXT),
        image_token_id=tiled.SPECIALS.index("<IMG_CONTEXT>"),
        tie_word_embeddings=tied,
    )
    return transformers.InternVLForConditionalGeneration(config), tiled.internvl()


MODELS = {
    "llava_next": llava_next,
    "idefics3": idefics3,
    "smolvlm": lambda: idefics3("SmolVLM", tie_word_embeddings=True),
    "internvl": lambda: internvl(attention_bias=True, use_mean_pooling=False),
    "internvl-rms": lambda: internvl("llama", False, use_qk_norm=True, norm_type="rms_norm"),
}


def converted(theirs, processor, folder):
    """(config, model, parameters) of what `mmjax convert` makes of a saved model and its processor."""
    theirs.save_pretrained(folder / "hf")
    processor.tokenizer.save_pretrained(folder / "hf")
    processor.image_processor.save_pretrained(folder / "hf")
    import_folder(folder / "hf", folder / "run")
    config = load_config(folder / "run")
    tokenizer = keep_tokenizer(config.tokenizer, folder / "run")
    model = build_model(config, tokenizer.vocab_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = load_parts(config.load, shapes, shard_tree(shapes, make_mesh({"data": 1})))
    return config, tokenizer, model, params


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_answers_and_weights_of(name, tmp_path):
    theirs, processor = MODELS[name]()
    theirs = randomise(theirs)
    _, tokenizer, model, params = converted(theirs, processor, tmp_path)
    path = tiled.write_records(tmp_path, CONVERSATIONS)
    spec = read_raw(tmp_path / "run")["sft"]["data"] | dict(
        length=400, workers=0, threads=1, sources=dict(main=dict(path=path, root="", weight=1.0))
    )
    span = model.tokens_per_medium()["image"]
    quarantine = tmp_path / "quarantine.jsonl"
    data = make_dataset(
        spec, tokenizer, span=span, splice=True, rows=None, seed=0, data_dir="", quarantine=quarantine
    )
    assert not any(data.quarantine.counts().values())

    batch = next(data.batches(len(data)))
    assert (batch.segments.max(1) > 1).any(), "no row holds several examples"
    found = logits(model, params, batch)
    for row in range(len(data)):
        for segment, (_, index) in enumerate(data.plan.row(row), 1):
            question, answer, shown = CONVERSATIONS[index]
            given = tiled.inputs(processor, f"<s>{question}{answer}</s>", shown)
            here = batch.segments[row] == segment
            np.testing.assert_array_equal(batch.tokens[row, here], given["input_ids"][0])
            assert error(found[row, here], theirs(**given).logits[0]) < TOLERANCE

    assistant = Assistant(model, params, data.chat, data.feeds[0].views, length=400, batch=4)
    assert_same_answers(assistant, theirs, processor)
    assert_same_when_back(theirs, tmp_path)


def assert_same_answers(assistant, theirs, processor):
    """Greedy decoding gives the same tokens, for all prompts as one batch of ours."""
    prompts = [Sample(q, (Turn("user", q),), tuple(shown)) for q, _, shown in CONVERSATIONS]
    encoded = [assistant._encode(prompt, NEW) for prompt in prompts]
    batch = assistant._collate(encoded, prompts, len(prompts))
    tokens, _ = assistant._decode(batch, range(len(prompts)), Sampling(max_new=NEW))
    for k, (question, _, shown) in enumerate(CONVERSATIONS):
        given = tiled.inputs(processor, f"<s>{question}", shown)
        answer = theirs.generate(**given, do_sample=False, max_new_tokens=NEW, eos_token_id=1, pad_token_id=0)
        answer = answer[0, given["input_ids"].shape[1] :].tolist()
        answer = answer[: answer.index(1)] if 1 in answer else answer
        assert tokens[k, : len(answer)].tolist() == answer


def assert_same_when_back(theirs, folder):
    export_workdir(folder / "run", folder / "back")
    back = type(theirs).from_pretrained(folder / "back").eval()
    assert_same_weights(theirs, back)
    ids = torch.arange(40)[None] % tiled.VOCAB + 30
    assert torch.equal(theirs(ids).logits, back(ids).logits)


CLIP = dict(model_type="clip_vision_model", **tiled.VISION)
LLAMA = dict(model_type="llama", **tiled.TEXT)
REFUSED = {
    "no grid": (dict(model_type="llava_next", vision_config=CLIP, vision_feature_select_strategy="full"), {}),
    "preprocessor_config.json: image_grid_pinpoints is .*config.json has": (
        dict(model_type="llava_next", vision_config=CLIP, image_grid_pinpoints=[[56, 112]]),
        dict(image_grid_pinpoints=[[112, 56]]),
    ),
    "max_image_size is .*64.*: the encoder reads 56 pixels": (
        dict(model_type="idefics3", vision_config=tiled.VISION),
        dict(max_image_size=dict(longest_edge=64)),
    ),
    ": size is .*64.*: the encoder reads 56 pixels": (
        dict(model_type="internvl", vision_config=tiled.VISION),
        dict(size=dict(height=64, width=64)),
    ),
    "vision_feature_select_strategy 'full'": (
        dict(model_type="internvl", vision_config=tiled.VISION, vision_feature_select_strategy="full"),
        {},
    ),
    "wants use_mean_pooling": (
        dict(model_type="internvl", vision_config=dict(norm_type="rms_norm", use_mean_pooling=False)),
        {},
    ),
    "use_qk_norm wants layer_norm_eps": (
        dict(model_type="internvl", vision_config=dict(use_qk_norm=True, layer_norm_eps=1e-5)),
        {},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_known_is_refused(message):
    config, processor = REFUSED[message]
    config = dict(config, text_config=LLAMA)
    found = find_family(config, "config.json")
    with pytest.raises(CheckpointError, match=message):
        found.spec(config)
        found.views(config, complete_settings(processor, "preprocessor_config.json", config["model_type"]))
