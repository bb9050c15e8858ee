"""Pictures in tiles: pixels, token ids and places of projected tokens are those of Hugging Face's processors."""

import numpy as np
import pytest
import tiled
import torch
import transformers

from mmjax.data.chat import Chat
from mmjax.data.image import ImageOptions
from mmjax.data.tokenizer import HFTokenizer
from mmjax.data.views import AnyRes, Dynamic, Split
from mmjax.hub.idefics3 import IDEFICS3_VISION
from mmjax.hub.tensors import CheckpointError
from mmjax.types import Turn

# Wide, tall, square, smaller and larger than a tile, and odd in every way.
SIZES = [(640, 480), (213, 517), (300, 300), (40, 30), (1000, 130), (97, 801), (336, 672), (7, 300), (501, 499)]
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # the published ones


def options(size, resample):
    return ImageOptions(size, "stretch", 64_000_000, resample)


FAMILIES = {  # processor, views, side of a tile's grid of tokens, newline token, image token
    "llava_next": (
        lambda: tiled.llava_next(336, 14, PINPOINTS),
        lambda: AnyRes(options(336, "bicubic"), PINPOINTS),
        (24**2 + 1, "<image>"),
    ),
    "idefics3": (
        lambda: tiled.idefics3(140, 14, longest=4 * 140),
        lambda: Split(options(140, "lanczos"), longest=4 * 140),
        (5**2, "<image>"),
    ),
    "idefics3-whole": (
        lambda: tiled.idefics3(140, 14, longest=4 * 140, do_image_splitting=False),
        lambda: Split(options(140, "lanczos"), longest=4 * 140, split=False),
        (5**2, "<image>"),
    ),
    "internvl": (
        lambda: tiled.internvl(112, 14, most=12),
        lambda: Dynamic(options(112, "bicubic"), fewest=1, most=12),
        (4**2, "<IMG_CONTEXT>"),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_and_tokens(name, tmp_path):
    make_processor, make_views, (span, token) = FAMILIES[name]
    processor, views = make_processor(), make_views()
    processor.tokenizer.save_pretrained(tmp_path)
    ours = HFTokenizer(tmp_path / "tokenizer.json", bos="<s>", eos="</s>")
    chat = Chat("bare", ours, span, True, image_token=token)
    mean, std = np.float32(tiled.MEAN), np.float32(tiled.STD)
    for size in SIZES:
        shown = tiled.picture(size)
        expected = tiled.inputs(processor, "<s>What is <image> this?\n", [shown])
        tiles, layout = views.cut(shown), views.layout(size, span)
        values = expected["pixel_values"].reshape(-1, *expected["pixel_values"].shape[-3:]).numpy()
        assert len(tiles) == len(values) == layout.tiles, size
        levels = (values.transpose(0, 2, 3, 1) * std + mean) * 255
        assert np.abs(levels - tiles).max() <= 1, size

        found = chat.encode_prompt([Turn("user", "What is <image> this?")], [layout])
        ids = expected["input_ids"][0].numpy()
        np.testing.assert_array_equal(found.tokens, ids)
        np.testing.assert_array_equal(found.slot >= 0, ids == ours.special(token))
        assert found.media_count == layout.tiles
        assert found.slot.max() < layout.tiles * span


def test_two_pictures_in_one_prompt(tmp_path):
    processor = tiled.idefics3()
    processor.tokenizer.save_pretrained(tmp_path)
    chat = Chat("bare", HFTokenizer(tmp_path / "tokenizer.json", bos="<s>", eos="</s>"), 4, True)
    views = Split(options(tiled.TILE, "lanczos"), longest=2 * tiled.TILE)
    pictures = [tiled.picture((90, 40)), tiled.picture((30, 80))]
    expected = tiled.inputs(processor, "<s><image>a<image>\n", pictures)
    layouts = [views.layout(picture.size, 4) for picture in pictures]
    found = chat.encode_prompt([Turn("user", "<image>a<image>")], layouts)
    np.testing.assert_array_equal(found.tokens, expected["input_ids"][0])
    # Idefics3 takes its tiles' tokens in the order in which they stand.
    np.testing.assert_array_equal(found.slot[found.slot >= 0], np.arange(found.media_count * 4))
    assert found.visible.max() == layouts[0].tiles


@pytest.mark.parametrize("side", [4, 16, 24, 26, 27, 32])  # Idefics3 364/14, SmolVLM 384/14 and 512/16
def test_idefics3_numbers_a_full_tiles_patches_in_order(side):
    config = transformers.Idefics3VisionConfig(
        hidden_size=4, num_attention_heads=1, num_hidden_layers=1, image_size=side, patch_size=1
    )
    embeddings = transformers.models.idefics3.modeling_idefics3.Idefics3VisionEmbeddings(config)
    seen = []
    embeddings.position_embedding.register_forward_pre_hook(lambda _, ids: seen.append(ids[0]))
    embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))
    np.testing.assert_array_equal(seen[0][0], np.arange(side**2))


def test_a_grid_where_idefics3_rounds_is_refused():
    with pytest.raises(CheckpointError, match="25 patches a side"):
        IDEFICS3_VISION.spec(dict(image_size=25, patch_size=1))
