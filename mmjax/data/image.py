"""An encoded picture, from bytes or a file, to pixels: checked before it is decoded, upright, RGB, one size."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from mmjax.errors import UserError

# Formats of pictures, not of documents: a decoder that is not needed is one that cannot be attacked.
# (JPEG includes the MPO of phones and cameras, whose first picture is read.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
RESAMPLE = {filter.name.lower(): filter for filter in Image.Resampling}
RESIZE = ("stretch", "pad", "crop", "none")
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


class ImageError(UserError):
    """A picture that cannot be used, and why."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How a picture becomes [size, size, 3]: resized as `resize` says, and of that the centre square, with black
    around where it is smaller.

    resize: 'stretch' to a square of `edge`; 'pad' to a square of colour `fill`, and that to one of `edge`
      (LLaVA-1.5); 'crop', the shorter side to `edge` (CLIP); or 'none'.
    max_pixels: a picture whose header announces more is refused before it is decoded.
    edge: 0 for `size`.
    """

    size: int
    resize: str
    max_pixels: int
    resample: str = "bicubic"
    fill: tuple[int, int, int] = (122, 116, 104)  # CLIP's mean colour, LLaVA-1.5's padding
    edge: int = 0

    def __post_init__(self):
        if self.edge < 0:
            raise UserError(f"edge: {self.edge} is below 0.")
        if self.resize not in RESIZE:
            raise UserError(f"resize: {self.resize!r} is none of {', '.join(RESIZE)}.")
        if self.resample not in RESAMPLE:
            raise UserError(f"resample: {self.resample!r} is none of {', '.join(RESAMPLE)}.")


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
    with _decoding():
        if not (len(picture) if isinstance(picture, bytes) else os.stat(picture).st_size):
            raise ImageError("has 0 bytes")
        with (
            io.BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb") as file,
            _identified(file) as image,
        ):
            yield image


def _identified(file: IO[bytes]) -> Image.Image:
    """A picture whose header alone is read.

    As Image.open does it, but for the warning of many pixels: whoever opens a picture here checks its size next
    (`check_size`), and a filter of warnings would be everybody's.
    """
    Image.preinit()
    begin = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # as plugins say "not mine"
            if not accept or accept(begin) is True:
                file.seek(0)
                return factory(file, "")
    raise Image.UnidentifiedImageError


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Whatever Pillow raises becomes an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is no picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def from_pil(image: Image.Image, options: ImageOptions) -> Image.Image:
    """A PIL image as upright RGB, as `decode` makes it of a file that holds it. Raises ImageError as that does."""
    with _decoding():
        check_size(image.size, options)
        image.load()
        return to_rgb(image)


def from_array(pixels: np.ndarray, options: ImageOptions) -> Image.Image:
    """An array as RGB.

    Args:
      pixels: uint8 or bool; [H, W] or [H, W, 1] grey, [H, W, 3] RGB, [H, W, 4] RGB and opacity.

    Raises:
      ImageError: another shape or type, or too many pixels; says what to give.
    """
    shape = list(pixels.shape)
    remedy = "give uint8 [H, W, 3], [H, W, 4] or [H, W]"
    if pixels.ndim == 4:
        remedy += "; one picture at a time"
    elif pixels.ndim == 3 and shape[0] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        remedy += ": .transpose(1, 2, 0) of an array [3, H, W]"
    elif np.issubdtype(pixels.dtype, np.floating):
        remedy += ": (255 * x).round().astype('uint8') of numbers from 0 to 1"
    if (
        pixels.dtype not in (np.uint8, np.bool_)
        or pixels.ndim not in (2, 3)
        or shape[2:] not in ([], [1], [3], [4])
    ):
        raise ImageError(f"is {pixels.dtype} {shape}; {remedy}")
    check_size((shape[1], shape[0]), options)
    levels = pixels * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    return to_rgb(Image.fromarray(levels[..., 0] if shape[2:] == [1] else levels))


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
        raise ImageError("has floating-point pixels, whose range is not known; give 8 bits")
    if image.mode == "La":
        image = image.convert("LA")  # the only way from there
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def dihedral(pixels: np.ndarray, k: int) -> np.ndarray:
    """[H, W, 3] turned and mirrored, one of the 8 symmetries of a square: k in 0..7, 0 for none."""
    turned = np.rot90(pixels, k % 4)
    return np.ascontiguousarray(turned[:, ::-1] if k >= 4 else turned)


def check_size(size: tuple[int, int], options: ImageOptions) -> None:
    """Raises ImageError for a picture without pixels, of too many, or so narrow that it becomes so on its way."""
    if not min(size):
        raise ImageError(f"of {size[0]} x {size[1]} pixels is empty")
    limit = f"over the limit of {options.max_pixels} pixels (data.media.max_pixels)"
    if size[0] * size[1] > options.max_pixels:
        raise ImageError(f"of {size[0]} x {size[1]} pixels is {limit}")
    width, height = (max(size),) * 2 if options.resize == "pad" else _resized(size, options)
    if width * height > options.max_pixels:
        how = f"resized to {width} x {height} pixels (resize={options.resize!r})"
        how = f"padded to a square of {width} x {height} pixels" if options.resize == "pad" else how
        raise ImageError(f"of {size[0]} x {size[1]} pixels, {how}, is {limit}")


def _resized(size: tuple[int, int], options: ImageOptions) -> tuple[int, int]:
    """The (width, height) that a picture, padded or not, has before its centre is taken."""
    edge = options.edge or options.size
    if options.resize == "none":
        return size
    if options.resize == "crop":
        shorter = min(size)
        return edge * size[0] // shorter, edge * size[1] // shorter
    return edge, edge


def to_square(image: Image.Image, options: ImageOptions) -> Image.Image:
    """An RGB picture as one of size x size."""
    if options.resize == "pad" and image.width != image.height:
        longer = max(image.size)
        square = Image.new("RGB", (longer, longer), tuple(options.fill))
        square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
        image = square
    resized = _resized(image.size, options)
    image = image if image.size == resized else image.resize(resized, RESAMPLE[options.resample])
    size = options.size
    left, top = ((side - size) // 2 for side in resized)
    return image if resized == (size, size) else image.crop((left, top, left + size, top + size))
