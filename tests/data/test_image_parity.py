"""Pictures become the pixels that the image processors of `transformers` make of them."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage
import transformers
from PIL import Image

from mmjax.data.image import ImageOptions, load
from mmjax.hub.image_processor import complete_settings
from mmjax.hub.preprocess import square_keys

SIZE = 56
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png")
CLIP = dict(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
SQUARE = dict(size={"height": SIZE, "width": SIZE})
# Our resize, and the processor that does the same.
PROCESSORS = {
    "clip": ("crop", transformers.CLIPImageProcessorPil(**CLIP)),
    "siglip and paligemma": ("stretch", transformers.SiglipImageProcessorPil(**SQUARE)),
    "llava-1.5": ("crop", transformers.LlavaImageProcessorPil(**CLIP)),
    "llava-1.5 padded": ("pad", transformers.LlavaImageProcessorPil(**CLIP, do_pad=True)),
}


def png(image, **keys):
    file = io.BytesIO()
    image.save(file, "PNG", **keys)
    return file.getvalue()


def odd_pictures():
    rng = np.random.default_rng(0)

    def noise(*shape):
        return Image.fromarray(rng.integers(0, 256, shape, np.uint8))

    return {
        "wide": png(noise(31, 200, 3)),
        "tall": png(noise(301, 47, 3)),
        "one pixel high": png(noise(1, 90, 3)),
        "small": png(noise(5, 7, 3)),
        "as wanted": png(noise(SIZE, SIZE, 3)),
        "odd sides": png(noise(57, 59, 3)),
        "grey": png(noise(80, 61)),
        "palette": png(noise(70, 90, 3).quantize(17)),
        "black and white": png(noise(64, 80).convert("1")),
        "transparent": png(noise(70, 90, 4)),
        "transparent grey": png(noise(70, 90, 4).convert("LA")),
        "transparent colour": png(noise(70, 90, 3).quantize(17), transparency=3),
    }


def photographs():
    folder = Path(skimage.__file__).parent / "data"
    return {name: (folder / name).read_bytes() for name in PHOTOGRAPHS}


def theirs(processor, picture):
    """float [size, size, 3] in 0..255: what the processor gives, its normalisation undone."""
    with Image.open(io.BytesIO(picture)) as image:
        values = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    return (values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)) * 255


def ours(resize, picture):
    return load(picture, ImageOptions(SIZE, resize, 64_000_000)).astype(np.float64)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_of(name):
    resize, processor = PROCESSORS[name]
    read = complete_settings(processor.to_dict(), "preprocessor_config.json", "llava")
    keys = square_keys(read, SIZE)  # what `mmjax convert` writes into the config
    assert keys["resize"] == resize and keys.get("fill", [122, 116, 104]) == [122, 116, 104]
    for picture, encoded in (photographs() | odd_pictures()).items():
        np.testing.assert_allclose(ours(resize, encoded), theirs(processor, encoded), atol=1e-3, err_msg=picture)


def test_a_photograph_is_upright_here_and_as_the_camera_was_held_there():
    picture = Image.open(io.BytesIO(photographs()["coffee.png"]))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    for resize, processor in PROCESSORS.values():
        turned = png(picture, exif=orientation)
        upright = png(picture.transpose(Image.Transpose.ROTATE_270))
        np.testing.assert_array_equal(ours(resize, turned), ours(resize, upright))
        np.testing.assert_allclose(ours(resize, upright), theirs(processor, upright), atol=1e-3)
        np.testing.assert_allclose(theirs(processor, turned), theirs(processor, png(picture)), atol=1e-3)


def test_16_bits_are_scaled_here_and_clipped_there():
    levels = np.linspace(0, 65_535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    encoded = png(Image.fromarray(levels))
    np.testing.assert_array_equal(ours("stretch", encoded)[..., 0], levels >> 8)
    expected = theirs(PROCESSORS["siglip and paligemma"][1], encoded)
    np.testing.assert_allclose(expected[..., 0], levels.clip(0, 255), atol=1e-3)
