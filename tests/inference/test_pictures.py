"""Pictures as they are given: PIL images of every mode and arrays are what a file with them would be."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.data.image import ImageError, ImageOptions
from mmjax.data.views import Whole
from mmjax.inference.prompts import load_rgb, size_of

VIEWS = Whole(ImageOptions(8, "crop", 10_000))
LEVELS = np.random.default_rng(0).integers(0, 256, (11, 7, 4), np.uint8)
RGB = Image.fromarray(LEVELS[..., :3])


def rgb(picture):
    loaded = load_rgb(picture, VIEWS, "it")
    assert loaded.mode == "RGB" and loaded.size == size_of(picture, VIEWS, "it")
    return np.asarray(loaded)


def encoded(image, kind, **keys):
    file = io.BytesIO()
    image.save(file, kind, **keys)
    return file.getvalue()


def with_transparency(image, value):
    image.info["transparency"] = value
    return image


FILES = {  # mode -> (image, a lossless format that keeps it)
    "1": (RGB.convert("1"), "PNG"),
    "L": (RGB.convert("L"), "PNG"),
    "LA": (Image.fromarray(LEVELS).convert("LA"), "PNG"),
    "P": (RGB.quantize(17), "PNG"),
    "P, one colour transparent": (with_transparency(RGB.quantize(17), 3), "PNG"),
    "P, opacities": (with_transparency(RGB.quantize(17), bytes(range(0, 255, 15))), "PNG"),
    "L, one level transparent": (with_transparency(RGB.convert("L"), 77), "PNG"),
    "RGB": (RGB, "PNG"),
    "RGBA": (Image.fromarray(LEVELS), "PNG"),
    "CMYK": (RGB.convert("CMYK"), "TIFF"),
    "YCbCr": (RGB.convert("YCbCr"), "TIFF"),
    "LAB": (RGB.convert("LAB"), "TIFF"),
    "I": (Image.fromarray(LEVELS[..., 0].astype(np.int32) * 256), "TIFF"),
    "I;16": (Image.fromarray(LEVELS[..., 0].astype(np.uint16) * 256), "PNG"),
    "I;16B": (Image.frombytes("I;16B", (7, 11), LEVELS[..., 0].astype(">u2").tobytes()), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_what_a_file_of_it_is(name):
    image, kind = FILES[name]
    assert image.mode == name.split(",")[0]
    before = image.copy()
    np.testing.assert_array_equal(rgb(image), rgb(encoded(image, kind)))
    assert image.mode == before.mode and image.tobytes() == before.tobytes(), "the caller's image is as it was"


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "RGBa", "La", "PA"])
def test_modes_that_no_file_has(mode):
    source = Image.fromarray(LEVELS).convert("LA" if mode == "La" else "PA" if mode == "PA" else "RGBA")
    image = RGB.convert(mode) if mode in ("HSV", "RGBX") else source.convert(mode)
    if mode in ("HSV", "RGBX"):
        np.testing.assert_array_equal(rgb(image), np.asarray(image.convert("RGB")))
    else:  # rounded once more, where colours are stored times opacity
        np.testing.assert_allclose(rgb(image), rgb(source), atol=2)


def test_a_file_that_is_open_is_itself(tmp_path):
    """JPEG, CMYK and turned by its camera: upright, its levels not encoded a second time."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    RGB.convert("CMYK").save(tmp_path / "a.jpg", exif=orientation)
    with Image.open(tmp_path / "a.jpg") as image:
        found = rgb(image)
    assert found.shape == (7, 11, 3)
    np.testing.assert_array_equal(found, rgb(tmp_path / "a.jpg"))


def test_arrays():
    for array in (LEVELS[..., :3], jnp.asarray(LEVELS[..., :3]), np.asfortranarray(LEVELS[..., :3])):
        np.testing.assert_array_equal(rgb(array), LEVELS[..., :3])
    grey = np.repeat(LEVELS[..., :1], 3, axis=-1)
    for array in (LEVELS[..., 0], LEVELS[..., :1], jnp.asarray(LEVELS[..., 0])):
        np.testing.assert_array_equal(rgb(array), grey)
    np.testing.assert_array_equal(rgb(LEVELS[..., 0] > 99), np.where(grey > 99, 255, 0))
    np.testing.assert_array_equal(rgb(LEVELS), rgb(Image.fromarray(LEVELS)))
    assert rgb(np.zeros((5, 6, 4), np.uint8)).min() == 255, "what is transparent lies on white"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.ones((4, 4, 3)), r"it is float64 \[4, 4, 3\]; give uint8 \[H, W, 3\].*\(255 \* x\)\.round\(\)"),
        (jnp.ones((4, 4, 3)), r"it is float32 \[4, 4, 3\]; give uint8"),
        (np.zeros((3, 8, 9), np.uint8), r"it is uint8 \[3, 8, 9\]; .*transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 9), np.uint8), r"it is uint8 \[1, 8, 9\]; .*transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), "one picture at a time"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]; give"),
        (np.zeros(4, np.uint8), r"\[4\]; give"),
        (np.zeros((4, 4), np.int64), "it is int64"),
        (np.zeros((4, 0, 3), np.uint8), "it of 0 x 4 pixels is empty"),
        (np.zeros((200, 100), np.uint8), "it of 100 x 200 pixels is over the limit of 10000 pixels"),
        (Image.new("F", (4, 4)), "floating-point pixels, whose range is not known; give 8 bits"),
        (Image.new("RGB", (0, 4)), "it of 0 x 4 pixels is empty"),
        (Image.new("CMYK", (100, 200)), "over the limit"),
        (7, "it is a int; give a path, encoded bytes, an array or a PIL image"),
    ],
)
def test_refused_with_the_remedy(picture, message):
    for function in (load_rgb, size_of):
        with pytest.raises(ImageError, match=message):
            function(picture, VIEWS, "it")


def test_an_open_file_that_is_cut_off():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(LEVELS), "PNG")[:150]))
    with pytest.raises(ImageError, match="it cannot be decoded"):
        load_rgb(image, VIEWS, "it")


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        (
            "pad",
            r"1 x 900 pixels, padded to a square of 900 x 900 pixels, is over .* 10000 .*data\.media\.max_pixels",
        ),
        ("crop", r"of 1 x 900 pixels, resized to 16 x 14400 pixels \(resize='crop'\), is over"),
    ],
)
def test_a_strip_is_refused_for_what_it_would_become(resize, message):
    for picture in (Image.new("L", (1, 900)), encoded(Image.new("L", (1, 900)), "PNG")):
        with pytest.raises(ImageError, match=message):
            load_rgb(picture, Whole(ImageOptions(8, resize, 10_000, edge=16)), "it")
    assert load_rgb(np.zeros((900, 1), np.uint8), Whole(ImageOptions(8, "none", 10_000)), "it").size == (1, 900)
