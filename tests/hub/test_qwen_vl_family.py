"""Qwen2-VL and Qwen2.5-VL: our logits and replies are those of `transformers`, for pictures of any shape."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, error, imported, logits, randomise, save

from mmjax.convert import export_workdir
from mmjax.data.patches import mrope_positions, patchify
from mmjax.hub.family import find_family
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.sample import generate
from mmjax.types import Batch, Media

IMAGE, PATCH, PATCHES = 7, 4, 96
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
    rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
    bos_token_id=None,
    eos_token_id=None,
)
TOKENS = dict(image_token_id=IMAGE, video_token_id=6, vision_start_token_id=5, vision_end_token_id=4)
FAMILIES = {
    "qwen2_vl": (
        transformers.Qwen2VLForConditionalGeneration,
        dict(depth=3, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=PATCH),
    ),
    "qwen2_5_vl": (  # windows of 2 x 2 tokens
        transformers.Qwen2_5_VLForConditionalGeneration,
        dict(
            depth=4,
            hidden_size=32,
            out_hidden_size=32,
            intermediate_size=40,
            num_heads=2,
            patch_size=PATCH,
            window_size=16,
            fullatt_block_indexes=[1, 3],
        ),
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """(theirs, our model, params, the folder with both)."""
    cls, vision = FAMILIES[request.param]
    config = cls.config_class(vision_config=vision, text_config=TEXT, **TOKENS)
    folder = tmp_path_factory.mktemp(request.param)
    theirs = randomise(cls(config))
    return theirs, *imported(save(theirs, folder / "hf"), folder / "run"), folder


def pictures():
    """uint8 pictures of 2 x 3, 5 x 3 and 1 x 4 tokens."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (8 * h, 8 * w, 3), np.uint8) for h, w in ((2, 3), (5, 3), (1, 4))]


def batch_of(rows, length, slots):
    """A Batch of packed rows, each a list of examples of token ids and pictures."""
    shape = (len(rows), length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions, slot = np.zeros((*shape, 3), np.int32), np.full(shape, -1, np.int32)
    patches = np.full((len(rows), slots, PATCHES, PATCH**2 * 3), 99, np.uint8)  # padding is not to be seen
    grid = np.zeros((len(rows), slots, 2), np.int32)
    for r, examples in enumerate(rows):
        end = medium = 0
        for segment, parts in enumerate(examples, 1):
            begin, spans = end, []
            for part in parts:
                count = 1
                if isinstance(part, np.ndarray):
                    cut, (h, w) = patchify(part, PATCH, 2)
                    patches[r, medium, : len(cut)], grid[r, medium] = cut, (h, w)
                    count = len(cut) // 4
                    spans.append((end - begin, (h // 2, w // 2)))
                    slot[r, end : end + count] = medium * (PATCHES // 4) + np.arange(count)
                    medium, part = medium + 1, IMAGE
                tokens[r, end : end + count] = part
                end += count
            segments[r, begin:end], positions[r, begin:end] = segment, mrope_positions(end - begin, spans)
    media = Media(dict(patches=patches, grid=grid), grid.any(-1), slot, np.full(shape, -1, np.int32))
    return Batch(tokens, segments, positions, np.ones_like(tokens), np.zeros(shape, np.float32), {"image": media})


def inputs(model, parts):
    """The keyword arguments of `transformers` for one example."""
    encoder = model.encoders["image"]
    ids, pixels, grids = [], [], []
    for part in parts:
        if isinstance(part, np.ndarray):
            cut, (h, w) = patchify(part, PATCH, 2)
            x = (cut.reshape(-1, PATCH, PATCH, 3) / np.float32(255) - np.float32(encoder.mean)) / np.float32(
                encoder.std
            )
            x = np.repeat(x.transpose(0, 3, 1, 2)[:, :, None], 2, axis=2)  # [N, 3, 2, P, P]
            pixels.append(torch.tensor(x.reshape(len(cut), -1)))
            grids.append([1, h, w])
            ids += [IMAGE] * (len(cut) // 4)
        else:
            ids.append(part)
    ids = torch.tensor([ids])
    media = dict(pixel_values=torch.cat(pixels), image_grid_thw=torch.tensor(grids)) if pixels else {}
    return dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), **media)


def examples():
    one, two, three = pictures()
    words = [int(i) for i in np.random.default_rng(0).integers(8, VOCAB, 40)]
    return [
        [*words[:3], one, *words[3:8], two, *words[8:12]],
        words[12:25],
        [three, *words[25:30]],
    ]


def test_logits_on_pictures_of_any_shape_packed_and_padded(both):
    theirs, model, params, _ = both
    shown = examples()
    found = logits(model, params, batch_of([shown[:2], shown[2:]], 52, slots=3))
    begin = 0
    for row, example in zip((0, 0, 1), shown, strict=True):
        begin = 0 if row else begin
        expected = theirs(**inputs(model, example)).logits[0]
        assert error(found[row, begin : begin + len(expected)], expected) < TOLERANCE
        begin += len(expected)


def test_replies_are_the_same_token_by_token(both):
    theirs, model, params, _ = both
    shown = examples()
    batch = batch_of([[one] for one in shown], 33, slots=2)
    settings = dict(max_new=32, temperature=0.0, top_k=0, top_p=1.0, stop=[], pad=0)
    found, _ = generate(model, params, batch, jax.random.key(0), **settings)
    for row, example in zip(np.asarray(found), shown, strict=True):
        given = inputs(model, example)
        reply = theirs.generate(**given, max_new_tokens=32, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert row.tolist() == reply.tolist()


def test_weights_come_back(both):
    theirs, model, _, folder = both
    export_workdir(folder / "run", folder / "back")
    back = transformers.AutoModelForImageTextToText.from_pretrained(folder / "back")
    assert_same_weights(theirs, back)
    given = inputs(model, examples()[0])
    assert torch.equal(theirs(**given).logits, back(**given).logits)


def as_on_the_hub(folder):
    """Rewrites a folder's config.json as transformers 4 did: the language model's keys beside all others."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    del text["model_type"], text["layer_types"], config["vision_config"]["rope_parameters"]
    text |= dict(
        rope_theta=rope["rope_theta"], rope_scaling=dict(type="mrope", mrope_section=rope["mrope_section"])
    )
    config["vision_config"]["model_type"] = config["model_type"]
    file.write_text(json.dumps(config | text))


def test_a_checkpoint_of_transformers_4_is_the_same_model(both, tmp_path):
    theirs, _, params, folder = both
    shutil.copytree(folder / "hf", tmp_path / "hf")
    as_on_the_hub(tmp_path / "hf")
    model, found = imported(tmp_path / "hf", tmp_path / "run")
    assert tuple(model.backbone.rope_sections) == (2, 3, 3) and model.backbone.rope_theta == 1e4
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    given = inputs(model, examples()[0])
    assert torch.equal(theirs(**given).logits, back(**given).logits)


@pytest.mark.parametrize(
    "where, change, message",
    [
        (
            "text_config",
            dict(use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]),
            "sliding windows are not known",
        ),
        ("vision_config", dict(in_channels=4), "other than 3 channels"),
    ],
)
def test_what_would_change_the_numbers_is_refused(both, where, change, message):
    config = json.loads((both[3] / "hf" / "config.json").read_text())
    config[where] |= change
    with pytest.raises(CheckpointError, match=message):
        find_family(config, "config.json").spec(config)
