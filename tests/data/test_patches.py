"""Patches of pictures at their native resolution: the processor of `transformers` makes the same of them."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmjax.data.patches import mrope_positions, patchify, smart_resize

SIZES = [(31, 57), (200, 40), (100, 100), (7, 1200), (28, 28), (42, 70), (3, 599), (333, 500)]  # height, width
LIMITS = (56 * 56, 28 * 28 * 40)


@pytest.fixture(scope="module")
def processor():
    size = dict(shortest_edge=LIMITS[0], longest_edge=LIMITS[1])
    return transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(size=size)


@pytest.mark.parametrize("height, width", SIZES)
def test_patches_and_grid_are_those_of_the_processor(processor, height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    theirs = processor(Image.fromarray(pixels), return_tensors="np")
    rows, columns = smart_resize(height, width, 28, *LIMITS)
    resized = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC))
    patches, grid = patchify(resized, 14, 2)
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
    values = theirs["pixel_values"].reshape(-1, 3, 2, 14, 14)
    np.testing.assert_array_equal(values[:, :, 0], values[:, :, 1])  # a still picture: twice the same
    values = values[:, :, 0].transpose(0, 2, 3, 1) * processor.image_std + processor.image_mean
    assert np.abs(values.reshape(patches.shape) * 255 - patches).max() < 1e-3


def test_a_picture_keeps_its_shape_within_the_limits():
    for height, width in SIZES[:3]:
        rows, columns = smart_resize(height, width, 28, *LIMITS)
        assert rows % 28 == columns % 28 == 0
        assert LIMITS[0] <= rows * columns <= LIMITS[1]
    assert smart_resize(42, 70, 28, 0, 10**6) == (56, 56)  # a half is rounded to even, as Python does
    with pytest.raises(ValueError, match="too narrow"):
        smart_resize(10, 2001, 28, *LIMITS)


def test_patches_that_become_one_token_are_neighbours():
    """4 x 6 patches of one pixel, numbered row by row."""
    pixels = np.repeat(np.arange(24, dtype=np.uint8).reshape(4, 6, 1), 3, axis=-1)
    patches, grid = patchify(pixels, 1, 2)
    assert grid == (4, 6)
    assert patches[:, 0].tolist() == [
        *(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11),
        *(12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23),
    ]
    with pytest.raises(ValueError, match="no whole blocks of 2"):
        patchify(pixels[:3], 1, 2)


def test_positions_count_on_after_the_largest_of_a_picture():
    found = mrope_positions(12, [(2, (2, 3)), (9, (1, 1))])
    assert found.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
    ]


@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL"])
def test_positions_are_those_of_the_model(family):
    grids = [(4, 6), (2, 2), (10, 4)]
    ids, spans = [9, 9], []
    for rows, columns in grids:
        spans.append((len(ids), (rows // 2, columns // 2)))
        ids += [7] * (rows * columns // 4) + [9] * 3
    ids = torch.tensor([ids])
    with torch.device("meta"):  # no weights are needed
        model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")())
    theirs, _ = model.get_rope_index(ids, (ids == 7).int(), torch.tensor([[1, *grid] for grid in grids]))
    np.testing.assert_array_equal(mrope_positions(ids.shape[1], spans).T, theirs[:, 0])
