"""Every kind of picture to RGB, the three ways to a square, and every way to be refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from materials import noise, picture, truncated
from PIL import Image

from mmjax.data.image import ImageError, ImageOptions, dihedral, load, upright_size

WHITE = [255, 255, 255]


def options(size=8, resize="stretch", max_pixels=1_000_000, **more):
    return ImageOptions(size, resize, max_pixels, **more)


def encoded(image, kind="PNG", **save):
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def test_bytes_and_path_give_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    pixels = load(tmp_path / "a.png", options(40))
    assert pixels.shape == (40, 40, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, load(encoded(noise()), options(40)))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG", "MPO"])
def test_formats(kind):
    pixels = load(encoded(Image.new("RGB", (8, 8), (200, 30, 30)), kind), options())
    assert np.abs(pixels.astype(int) - [200, 30, 30]).max() <= 3


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((3, 2), (10, 20, 30, 255))
    for kind in ("PNG", "WEBP"):
        save = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        pixels = load(encoded(image, kind, **save), options())
        assert pixels[2, 3].tolist() == [10, 20, 30] and pixels[0, 0].tolist() == WHITE
    half = load(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), options())
    assert abs(int(half[0, 0, 0]) - 127) <= 1


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = load(encoded(image, transparency=1), options())
    assert pixels[0, 0].tolist() == [255, 0, 0] and pixels[5, 5].tolist() == WHITE


def test_grey_and_grey_with_alpha():
    assert load(encoded(Image.new("L", (8, 8), 77)), options())[4, 4].tolist() == [77] * 3
    assert load(encoded(Image.new("LA", (8, 8), (77, 0))), options())[4, 4].tolist() == WHITE
    assert load(encoded(Image.new("1", (8, 8), 1)), options())[4, 4].tolist() == WHITE


def test_sixteen_bits_are_scaled_not_clipped():
    for kind in ("PNG", "TIFF"):
        image = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
        assert load(encoded(image, kind), options())[1, 1].tolist() == [0x80] * 3


def test_cmyk():
    pixels = load(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), options())
    assert pixels[0, 0, 0] > 200 and pixels[0, 0, 1] < 60


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(kind, orientation):
    """The upright picture has its red corner at the top left; each orientation stores it elsewhere."""
    upright = Image.new("RGB", (16, 16), "blue")
    upright.paste("red", (0, 0, 8, 4))
    steps = {
        1: [],
        2: ["FLIP_LEFT_RIGHT"],
        3: ["ROTATE_180"],
        4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"],
        6: ["ROTATE_90"],
        7: ["TRANSVERSE"],
        8: ["ROTATE_270"],
    }[orientation]
    stored = upright
    for step in steps:
        stored = stored.transpose(Image.Transpose[step])
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = load(encoded(stored, kind, exif=exif), options(16)).astype(int)
    assert pixels[1, 2, 0] > 150 and pixels[1, 2, 2] < 100, "red at the top left"
    assert pixels[10, 2, 2] > 150 and pixels[2, 12, 2] > 150, "blue elsewhere"


def test_resize_modes():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 10, 20))  # the left quarter
    data = encoded(image)
    stretch = load(data, options(20, "stretch"))
    assert stretch[10, 1].tolist() == WHITE and stretch[10, 12].tolist() == [0, 0, 0]
    pad = load(data, options(40, "pad", fill=(1, 2, 3)))
    assert pad[0, 0].tolist() == [1, 2, 3] and pad[39, 39].tolist() == [1, 2, 3]
    assert pad[10, 0].tolist() == WHITE and pad[29, 39].tolist() == [0, 0, 0]
    crop = load(data, options(20, "crop"))
    assert crop.max() == 0, "the white quarter is outside the centre square"


def test_crop_is_clips():
    """Shorter side to `size` by bicubic, then the centre."""
    image = noise((50, 30))
    resized = image.resize((25, 15), Image.Resampling.BICUBIC).crop((5, 0, 20, 15))
    np.testing.assert_array_equal(load(encoded(image), options(15, "crop")), np.asarray(resized))


def test_what_is_smaller_than_the_square_lies_on_black():
    """As CLIP's centre crop: 3 of 8 pixels missing, 2 of them left and above."""
    image = noise((5, 12))
    pixels = load(encoded(image), options(8, "none"))
    np.testing.assert_array_equal(pixels[:, 2:7], np.asarray(image)[2:10])
    assert pixels[:, :2].max() == 0 == pixels[:, 7:].max()
    assert load(encoded(noise((40, 30))), options(8, "crop", edge=6)).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"edge: -1"):
        options(8, "crop", edge=-1)


def test_dihedral_has_eight_different_symmetries():
    pixels = np.asarray(noise((6, 6)))
    turned = [dihedral(pixels, k) for k in range(8)]
    assert len({t.tobytes() for t in turned}) == 8
    np.testing.assert_array_equal(turned[0], pixels)


def huge_png(width, height):
    """A header that announces many pixels, and almost no data: a decompression bomb."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"not a picture", "no picture of a known format"),
        (truncated(encoded(noise())), "cannot be decoded"),
        (truncated(encoded(noise(), "JPEG")), "cannot be decoded"),
        (encoded(noise())[:60] + b"\x00" * 40 + encoded(noise())[100:], "cannot be decoded"),
        (huge_png(1001, 1000), "1001 x 1000 pixels is over the limit"),
        (huge_png(2_000_000, 2_000_000), "limit"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "no picture of a known format"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        load(data, options())


@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_a_narrow_picture_is_no_bomb_by_way_of_its_square(resize):
    data = encoded(Image.new("L", (20_000, 1)))
    assert load(data, options(8, "stretch")).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="20000 x 1"):
        load(data, options(8, resize))


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        load(tmp_path / "none.png", options())


def test_options_are_checked():
    with pytest.raises(ValueError, match="resize: 'squash'"):
        options(resize="squash")
    with pytest.raises(ValueError, match="resample: 'cubic'"):
        options(resample="cubic")
    assert load(picture(), options(resample="nearest")).shape == (8, 8, 3)


@pytest.mark.filterwarnings("error")
def test_a_picture_of_many_pixels_is_no_matter_of_pillows_warning():
    """Pillow warns from 89 million pixels on; `max_pixels` alone says how many are too many."""
    data = huge_png(10_000, 9_000)
    assert upright_size(data, options(max_pixels=100_000_000)) == (10_000, 9_000)
    with pytest.raises(ImageError, match="10000 x 9000 pixels is over the limit of 80000000"):
        upright_size(data, options(max_pixels=80_000_000))
