"""An encoded picture, from bytes or a file, to pixels: checked before it is decoded, upright, RGB, one size."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from mmjax.errors import UserError

# Formats of pictures, not of documents: a decoder that is not needed is one that cannot be attacked.
# (JPEG includes the MPO of phones and cameras, whose first picture is read.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
RESAMPLE = {name.lower(): Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")}
RESIZE = ("stretch", "pad", "crop")
_ORIENTATION = 0x0112  # the EXIF tag; its values 2..8 are undone by these
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


# Sizes are checked here, before decoding; Pillow's own, higher limit stays an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(UserError):
    """A picture that cannot be used, and why."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How a picture becomes [size, size, 3].

    resize: 'stretch'; 'pad' to a square of colour `fill` first (LLaVA-1.5); or 'crop', the shorter side to
      `size` and the centre square of that (CLIP).
    max_pixels: a picture whose header announces more is refused before it is decoded.
    """

    size: int
    resize: str
    max_pixels: int
    resample: str = "bicubic"
    fill: tuple[int, int, int] = (122, 116, 104)  # CLIP's mean colour, LLaVA-1.5's padding

    def __post_init__(self):
        if self.resize not in RESIZE:
            raise UserError(f"media.resize: {self.resize!r} is none of {', '.join(RESIZE)}.")
        if self.resample not in RESAMPLE:
            raise UserError(f"media.resample: {self.resample!r} is none of {', '.join(RESAMPLE)}.")


def load(picture: bytes | os.PathLike[str] | str, options: ImageOptions) -> np.ndarray:
    """Decodes one picture and makes it a square.

    Returns:
      uint8 [size, size, 3], RGB.

    Raises:
      ImageError: as for `decode`.
    """
    return np.array(to_square(decode(picture, options), options), np.uint8)


def decode(picture: bytes | os.PathLike[str] | str, options: ImageOptions) -> Image.Image:
    """One picture as upright RGB; of an animation, the first frame.

    Args:
      picture: encoded bytes, or the path of a file.

    Raises:
      ImageError: missing, empty, damaged, truncated, of an unknown format, or of too many pixels.
    """
    with _opened(picture) as image:
        check_size(image.size, options)
        image.load()
        return to_rgb(image)


def upright_size(picture: bytes | os.PathLike[str] | str, options: ImageOptions) -> tuple[int, int]:
    """(width, height) that `decode` would give. Reads the header alone where that says it all.

    Raises:
      ImageError: as for `decode`, of what the header tells.
    """
    with _opened(picture) as image:
        check_size(image.size, options)
        if image.format == "PNG" and not _may_be_turned(image.fp):
            return image.size  # Pillow would decode it to look for more
        if image.format == "TIFF":
            image.load()  # turns it upright by itself
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


@contextlib.contextmanager
def _opened(picture: bytes | os.PathLike[str] | str) -> Iterator[Image.Image]:
    """Opens a picture without decoding it; whatever goes wrong inside becomes an ImageError."""
    try:
        if not (len(picture) if isinstance(picture, bytes) else os.stat(picture).st_size):
            raise ImageError("has 0 bytes")
        with (
            io.BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb") as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            yield image
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is no picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _may_be_turned(file: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that could hold an orientation, wherever in the file."""
    file.seek(0)
    data = file.read()
    return any(name in data for name in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"))


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as upright RGB; transparency lies on white, 16 bits become 8."""
    orientation = image.getexif().get(_ORIENTATION)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        levels = np.asarray(image).astype(np.int64)
        levels = levels >> 8 if levels.max(initial=0) > 255 else levels
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is not known")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def dihedral(pixels: np.ndarray, k: int) -> np.ndarray:
    """[H, W, 3] turned and mirrored, one of the 8 symmetries of a square: k in 0..7, 0 for none."""
    turned = np.rot90(pixels, k % 4)
    return np.ascontiguousarray(turned[:, ::-1] if k >= 4 else turned)


def check_size(size: tuple[int, int], options: ImageOptions) -> None:
    """Raises ImageError for a picture too large, or so narrow that it becomes so on its way to a square."""
    width, height = size
    longer, shorter = max(size), max(min(size), 1)
    on_the_way = {
        "stretch": 0,
        "pad": longer * longer,
        "crop": options.size * options.size * longer // shorter,
    }[options.resize]
    if max(width * height, on_the_way) > options.max_pixels:
        raise ImageError(f"of {width} x {height} pixels is over the limit of {options.max_pixels} pixels")


def to_square(image: Image.Image, options: ImageOptions) -> Image.Image:
    """An RGB picture as one of size x size."""
    size, resample = options.size, RESAMPLE[options.resample]
    width, height = image.size
    if options.resize == "pad" and width != height:
        longer = max(width, height)
        square = Image.new("RGB", (longer, longer), tuple(options.fill))
        square.paste(image, ((longer - width) // 2, (longer - height) // 2))
        image = square
    if options.resize == "crop":
        shorter = min(width, height)
        scaled = (size * width // shorter, size * height // shorter)
        image = image if scaled == image.size else image.resize(scaled, resample)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        return image.crop((left, top, left + size, top + size))
    return image if image.size == (size, size) else image.resize((size, size), resample)
