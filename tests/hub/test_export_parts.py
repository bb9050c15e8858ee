"""Models made of parts: their exports have all that `transformers` reads texts and pictures with."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, error, randomise
from PIL import Image
from small_models import CLIP, SIGLIP
from test_chat_template import tokenizer

import mmjax
from mmjax.convert import convert
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.prompts import collate
from mmjax.training.stages import train
from mmjax.types import Sample, Turn
from mmjax.workdir import read_raw

TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
TOWERS = {
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, CLIP, "default"),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, SIGLIP, "full"),
}


def language_model(folder, words, kind="qwen2"):
    made = tokenizer()
    made.save_pretrained(folder)
    config = transformers.AutoConfig.for_model(kind, vocab_size=words, **TEXT, bos_token_id=0, eos_token_id=1)
    randomise(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    convert(folder, folder.with_name("lm_run"))
    return read_raw(folder.with_name("lm_run"))


def assemble(folder, tower, media, template="chatml", steps=1, kind="qwen2"):
    """The workdir of a LLaVA that is made of a language model and a vision tower, and trained for a step."""
    words = len(tokenizer())
    raw = json.loads(json.dumps(language_model(folder / "lm", words + 8, kind)))
    cls, config, sizes, strategy = TOWERS[tower]
    sizes = {key: value for key, value in sizes.items() if key != "model_type"}
    randomise(cls(config(**sizes))).save_pretrained(folder / "tower")
    whole = transformers.LlavaConfig(
        vision_config=dict(model_type=f"{tower}_vision_model", **sizes),
        text_config=dict(model_type=kind, vocab_size=words + 8, **TEXT),
        image_token_index=2,
        vision_feature_select_strategy=strategy,
    )
    from mmjax.hub.llava import LLAVA

    raw["model"] = LLAVA.spec(json.loads(whole.to_json_string(use_diff=False)))
    raw["tokenizer"] |= dict(extra=["<picture>"])
    raw["load"] = [["backbone", f"hf:{folder / 'lm'}"], ["encoders/image", f"hf:{folder / 'tower'}"]]
    picture(folder / "0.png", (60, 40))
    record = dict(
        image="0.png", messages=[dict(role="user", content="<image>\nWhat?"), dict(role="assistant", content="ab")]
    )
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    raw["sft"]["data"] |= dict(template=template, workers=0, threads=1, length=256)
    raw["sft"]["data"]["media"] = dict(slots=1, size=28, max_pixels=10**6, token="<picture>") | media
    raw["sft"]["data"]["sources"]["main"]["path"] = str(folder / "train.jsonl")
    raw["sft"] |= dict(batch=1, steps=steps, save_every=1)
    raw["sft"]["optimizer"] |= dict(warmup=0, lr=1e-3)
    train(raw | dict(mesh=dict(data=1)), folder / "run")
    return folder / "run"


def picture(path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path)
    return path


def card_lines(folder):
    """The Python lines of an export's model card, with its place."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1].replace(
        "PATH", str(folder)
    )


def run_card(folder):
    names = {}
    exec(card_lines(folder), names)
    return names


@pytest.mark.parametrize(
    "tower, media",
    [
        ("clip", dict(resize="crop")),
        ("clip", dict(resize="pad")),
        ("clip", dict(resize="stretch", resample="bilinear")),
        ("siglip", dict(resize="stretch")),
        ("siglip", dict(resize="crop", edge=32)),
    ],
)
@torch.no_grad()
def test_a_llava_of_parts(tmp_path, tower, media, caplog):
    run = assemble(tmp_path, tower, media)
    convert(run, tmp_path / "out", "llava")
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "out" in record.message]
    assistant = mmjax.load(run)
    names = run_card(tmp_path / "out")
    model, processor = names["model"].eval(), names["processor"]
    chat = assistant.encoder
    assert model.config.image_token_id == chat.tokenizer.special("<picture>")
    assert model.config.text_config.eos_token_id == list(chat.stop_ids)
    assert model.generation_config.eos_token_id == list(chat.stop_ids)
    assert (processor.tokenizer.bos_token, processor.tokenizer.eos_token) == ("<s>", "</s>")

    shown = picture(tmp_path / "shown.png", (50, 70))
    asked = [dict(role="user", content=[dict(type="image", image=str(shown)), dict(type="text", text="What?")])]
    given = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    sample = Sample("p", (Turn("user", "<image>\nWhat?"),), (shown,))
    encoded = assistant._encode(sample, 2)
    np.testing.assert_array_equal(encoded.tokens, given["input_ids"][0])
    cut = [assistant.views.cut(Image.open(shown))]
    batch = collate([encoded], [cut], 1, assistant.views, chat.span)
    hidden = assistant.model.apply(assistant.params, batch).hidden
    found = np.asarray(assistant.model.logits(assistant.params, hidden))[0, : len(encoded)]
    # Pixels are rounded otherwise by torchvision's filters than by Pillow's.
    slow = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    given["pixel_values"] = slow.image_processor(Image.open(shown), return_tensors="pt")["pixel_values"]
    assert error(found, model(**given).logits[0]) < TOLERANCE


@pytest.mark.parametrize("part", ["qwen2", "clip_vision_model"])
@torch.no_grad()
def test_a_part_of_it_alone(tmp_path, part):
    run = assemble(tmp_path, "clip", dict(resize="crop"))
    convert(run, tmp_path / "out", part)
    names = run_card(tmp_path / "out")
    assistant = mmjax.load(run)
    if part == "qwen2":
        asked = [dict(role="user", content="What?")]
        found = names["processor"].apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert found == assistant._encode(Sample("p", (Turn("user", "What?"),), ()), 2).tokens.tolist()
        assert names["model"].config.eos_token_id == list(assistant.encoder.stop_ids)
        return
    shown = Image.open(picture(tmp_path / "shown.png", (50, 70)))
    slow = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    values = slow(shown, return_tensors="pt")["pixel_values"]
    encoder = assistant.model.encoders["image"]
    cut = assistant.views.cut(shown).astype(np.float32) / 255
    ours = (cut - np.float32(encoder.mean)) / np.float32(encoder.std)
    assert error(ours.transpose(0, 3, 1, 2), values) < TOLERANCE
    theirs = names["model"].eval()(names["processor"](shown, return_tensors="pt")["pixel_values"])
    assert theirs.last_hidden_state.shape == (1, 5, 32)


def test_no_token_for_pictures_is_an_error(tmp_path):
    run = assemble(tmp_path, "clip", dict(resize="crop"))
    config = json.loads((run / "config.json").read_text())
    config["tokenizer"].pop("extra")
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no special token '<picture>'.*tokenizer.extra"):
        convert(run, tmp_path / "out", "llava")
    assert not (tmp_path / "out").exists()
