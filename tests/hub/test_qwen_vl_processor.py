"""Qwen2-VL's pictures from files to logits: tokens, patches, positions and logits are those of `transformers`."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from parity import TOLERANCE, error, imported, logits, randomise
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import mmjax
from mmjax.convert import import_folder
from mmjax.data.image import ImageError, ImageOptions
from mmjax.data.patches import Native
from mmjax.data.pipeline import make_dataset
from mmjax.data.tokenizer import HFTokenizer
from mmjax.errors import UserError
from mmjax.inference.chat import Sampling
from mmjax.types import Sample, Turn
from mmjax.workdir import read_raw

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IMAGE, PATCH, PATCHES = SPECIALS.index("<|image_pad|>"), 4, 64
SIZES = [(31, 45), (90, 17), (8, 8), (200, 150)]  # width, height
LIMITS = dict(min_pixels=16 * 16, max_pixels=PATCHES * PATCH**2)


def tokenizer():
    """Each byte a token, without merges; special tokens first."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {name: i for i, name in enumerate([*SPECIALS, *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(SPECIALS)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")


def processor():
    size = dict(shortest_edge=LIMITS["min_pixels"], longest_edge=LIMITS["max_pixels"])
    return Qwen2VLImageProcessorPil(size=size, patch_size=PATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, pictures and a conversation about them."""
    path = tmp_path_factory.mktemp("qwen")
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=PATCH)
    text = dict(
        vocab_size=256 + len(SPECIALS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
        bos_token_id=None,
        eos_token_id=1,
    )
    tokens = dict(image_token_id=IMAGE, video_token_id=5, vision_start_token_id=2, vision_end_token_id=3)
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **tokens)
    for part in (randomise(transformers.Qwen2VLForConditionalGeneration(config)), tokenizer(), processor()):
        part.save_pretrained(path / "hf")
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path / f"{i}.png")
    records = [
        dict(id="a", image=["0.png", "1.png"], said="<image>and <image>\nwhich?"),
        dict(id="b", image=[], said="none"),
        dict(id="c", image=["2.png", "3.png"], said="<image><image>"),
    ]
    lines = []
    for record in records:
        turns = [{"from": "human", "value": record.pop("said")}, {"from": "gpt", "value": "blue"}]
        lines.append(json.dumps(record | dict(conversations=turns)))
    (path / "data.jsonl").write_text("\n".join(lines))
    return path


def theirs_of(said, pictures):
    """The inputs of `transformers` for a question with pictures and the answer 'blue'."""
    text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\nblue<|im_end|>\n"
    found = {}
    if pictures:
        found = dict(processor()(pictures, return_tensors="pt"))
        for grid in found["image_grid_thw"]:
            pads = "<|image_pad|>" * (int(grid.prod()) // 4)
            text = text.replace("<image>", f"<|vision_start|>{pads}<|vision_end|>", 1)
    ids = tokenizer()(text, return_tensors="pt")["input_ids"]
    return dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), **found)


def test_a_packed_row_from_files_has_the_logits_of_transformers(folder, tmp_path):
    model, params = imported(folder / "hf", tmp_path / "run")
    media = read_raw(tmp_path / "run")["sft"]["data"]["media"]
    assert media["token"] == "<|image_pad|>" and media["size"] == PATCH
    assert media["views"] == dict(type="data.patches.Native", patches=5120, merge=2, **LIMITS)
    spec = dict(
        length=240,
        pack=True,
        too_long="refuse",
        template="chatml",
        bidirectional_images=False,
        media=media | dict(slots=4, views=media["views"] | dict(patches=PATCHES)),
        sources=dict(main=dict(path=str(folder / "data.jsonl"), root=str(folder), weight=1.0)),
        max_refused=0.0,
        workers=0,
        threads=1,
    )
    ours = HFTokenizer(folder / "hf" / "tokenizer.json", eos="<|im_end|>")
    settings = dict(span=PATCHES // 4, splice=True, rows=None, seed=0, data_dir="", quarantine=tmp_path / "bad")
    data = make_dataset(spec, ours, **settings)
    row = data.row(0)
    assert row.positions.shape == (240, 3) and row.media["image"].valid.all()
    found = logits(model, params, jax.tree.map(lambda leaf: leaf[None], row))[0]

    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder / "hf")
    shown = [Image.open(folder / f"{i}.png") for i in range(4)]
    expected = [
        theirs_of("<image>and <image>\nwhich?", shown[:2]),
        theirs_of("none", []),
        theirs_of("<image><image>", shown[2:]),
    ]
    tokens = [row.tokens[row.segments == s].tolist() for s in (1, 2, 3)]
    for given in expected:
        segment = tokens.index(given["input_ids"][0].tolist()) + 1
        assert error(found[row.segments == segment], reference(**given).logits[0]) < TOLERANCE


def test_limits_and_pictures_that_do_not_fit_are_refused():
    options = ImageOptions(PATCH, "stretch", 10**6)
    views = Native(options, patches=PATCHES, merge=2, **LIMITS)
    assert views.layout((31, 45), 16).grid == (4, 3)
    with pytest.raises(ImageError, match=r"takes \d+ patches .* room for 64: raise data.media.views.patches"):
        views.layout((2000, 10), 16)
    with pytest.raises(ImageError, match="too narrow"):
        views.layout((2010, 10), 16)
    with pytest.raises(ValueError, match="not the 4 tokens"):
        views.layout((31, 45), 4)
    with pytest.raises(ValueError, match="are no limits"):
        Native(options, patches=8, merge=2, min_pixels=17, max_pixels=16)


def test_room_for_pictures():
    """In training a fixed room; of prompts as much as the largest picture takes."""
    options = ImageOptions(PATCH, "stretch", 10**6)
    limits = dict(min_pixels=16 * 16, max_pixels=1000 * PATCH**2)
    rows = Native(options, patches=PATCHES, merge=2, **limits)
    with pytest.raises(ImageError, match=r"takes 784 patches .* lower data.media.views.max_pixels to 1,024"):
        rows.layout((112, 116), 16)
    prompts, span = rows.unlimited(16)
    layout = prompts.layout((112, 116), span)
    assert (span, layout.grid, len(layout.pieces[1])) == (250, (14, 14), 196)
    small, large = (prompts.cut(Image.new("RGB", size)) for size in ((8, 8), (112, 116)))
    assert large["patches"].shape[1] == 784
    fitted, span = prompts.fitted([small, large], span)
    assert (fitted.patches, span) == (1024, 256)
    assert fitted.empty(2)["patches"].shape == (2, 1024, 3 * PATCH**2)
    assert prompts.fitted([], 250)[0].patches == 64


def test_answers_about_pictures_that_no_row_of_training_has_room_for(folder, tmp_path):
    import_folder(folder / "hf", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    raw = json.loads(file.read_text())
    for section in (raw["model"]["encoders"]["image"], raw["sft"]["data"]["media"]["views"]):
        section["patches"] = 16
    raw["sft"]["data"]["template"] = "chatml"
    file.write_text(json.dumps(raw))
    assistant = mmjax.load(str(tmp_path / "run"))
    questions = [("<image>and <image>\nwhich?", (2, 3)), ("<image>\n", (1,)), ("none", ())]
    shown = [tuple(Image.open(folder / f"{i}.png") for i in numbers) for _, numbers in questions]
    prompts = [Sample(said, (Turn("user", said),), p) for (said, _), p in zip(questions, shown, strict=True)]
    encoded = [assistant._encode(prompt, 6) for prompt in prompts]
    batch = assistant._collate(encoded, prompts, 3)
    assert batch.media["image"].values["patches"].shape[2] == 64
    tokens, _ = assistant._decode(batch, range(3), Sampling(max_new=6))
    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder / "hf")
    for row, (prompt, pictures) in enumerate(zip(prompts, shown, strict=True)):
        given = theirs_of(prompt.turns[0].text.strip(), list(pictures))
        length = len(encoded[row])
        assert given["input_ids"][0, :length].tolist() == encoded[row].tokens.tolist()
        given |= {name: given[name][:, :length] for name in ("input_ids", "mm_token_type_ids")}
        for token in tokens[row].tolist():  # `generate` would lose the types of tokens that it adds
            assert reference(**given).logits[0, -1].argmax() == token
            if token == 1:
                break
            more = dict(input_ids=token, mm_token_type_ids=0)
            given |= {name: torch.cat([given[name], torch.full((1, 1), new)], 1) for name, new in more.items()}


def test_a_picture_that_the_memory_cannot_take_is_named_with_its_key(folder, tmp_path):
    import_folder(folder / "hf", tmp_path / "run")
    assistant = mmjax.load(tmp_path / "run")
    assistant.memory = 30_000  # bytes; 64 patches attend to one another in 2 heads, float32
    with pytest.raises(UserError) as error:
        assistant("What is it?", image=folder / "3.png")
    message = str(error.value)
    assert "of 200 x 150 pixels takes 64 patches, and attention among" in message
    assert "Lower data.media.views.max_pixels" in message
