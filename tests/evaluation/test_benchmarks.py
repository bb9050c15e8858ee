"""The benchmarks' own arithmetic, on assistants whose answers are known: one that sees, and one that guesses."""

import numpy as np
import pytest

from mmjax.data import corpora
from mmjax.evaluation.benchmarks import captions, easy_vqa, naming
from mmjax.evaluation.scores import token_f1
from mmjax.types import Sample, Turn

NAMES = ["red apple", "lion", "cow face", "tree", "flag of Japan"]


class Pictures:
    """Named pictures, whose bytes are their names."""

    def __len__(self):
        return len(NAMES)

    def __getitem__(self, i):
        turns = (Turn("user", "<image>"), Turn("assistant", NAMES[i]))
        return Sample(str(i), turns, (NAMES[i].encode(),))


class Seeing:
    """Reads a picture's name off its bytes."""

    def generate(self, prompts, sampling):
        assert all(prompt.turns[0].text == "<image>\nWhat is it?" for prompt in prompts)
        return [prompt.images[0].decode().upper() + " " for prompt in prompts]

    def score_many(self, prompts, candidates):
        assert all(len(set(own)) == len(own) == 3 for own in candidates)
        return [
            np.array([name == prompt.images[0].decode() for name in own], np.float32)
            for prompt, own in zip(prompts, candidates, strict=True)
        ]


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    monkeypatch.setattr(corpora, "open_corpus", lambda path, data_dir: Pictures())


def test_captions_of_one_who_sees():
    found = captions.evaluate(
        Seeing(), data_dir="", test="corpus:x/y/z", question="What is it?", limit=0, examples=2
    )
    assert found["exact"] == found["f1"] == 1 and found["shuffled_f1"] == 0 and found["count"] == 5
    assert [example["reference"] for example in found["examples"]] == ["red apple", "cow face"]


class Spaced(Pictures):
    """Names and questions with white space around."""

    def __getitem__(self, i):
        turns = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", f" {NAMES[i].upper()}\n"))
        return Sample(f"{i}/name", turns, (NAMES[i].encode(),))


def test_white_space_around_an_answer_or_a_reference_is_no_part_of_it(monkeypatch):
    monkeypatch.setattr(corpora, "open_corpus", lambda path, data_dir: Spaced())
    said = Seeing.generate
    monkeypatch.setattr(Seeing, "generate", lambda *given: ["\n  " + one for one in said(*given)])
    options = dict(data_dir="", test="corpus:x/y/z", limit=0, examples=2)
    found = captions.evaluate(Seeing(), question="What is it?", **options)
    assert found["exact"] == 1 and found["examples"][0]["reference"] == "RED APPLE"
    found = easy_vqa.evaluate(Seeing(), train="corpus:x/y/z", **options)
    assert found["accuracy"] == found["kinds"]["name"]["accuracy"] == 1 and found["shuffled"] == 0
    assert found["examples"][0]["prediction"] == found["examples"][0]["answer"]


def test_naming_by_one_who_sees():
    options = dict(data_dir="", test="corpus:x/y/z", question="What is it?", limit=4, choices=3)
    found = naming.evaluate(Seeing(), **options)
    assert found["accuracy"] == 1 and found["shuffled"] == 0 and found["count"] == 4
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["accuracy_norm"] == 1 and found["shuffled_norm"] == 0
    with pytest.raises(ValueError, match="9 of 4 names"):
        naming.evaluate(Seeing(), **options | dict(choices=9))


@pytest.mark.parametrize(
    "prediction, reference, score",
    [("a red apple", "Red apple.", 0.8), ("apple apple", "apple", 2 / 3), ("", "apple", 0.0), ("x", "y", 0.0)],
)
def test_token_f1(prediction, reference, score):
    assert token_f1(prediction, reference) == pytest.approx(score)


def test_naming_by_one_who_counts_letters(monkeypatch):
    """Minus a name's length as its log-likelihood: the shortest name always wins, and per letter none does."""
    monkeypatch.setattr(Seeing, "score_many", lambda *given: [-np.array([*map(len, own)]) for own in given[2]])
    options = dict(data_dir="", test="corpus:x/y/z", question="What is it?", limit=4, choices=2)
    found = naming.evaluate(Seeing(), **options)
    assert 0 < found["accuracy"] == found["shuffled"] < 1
    assert found["accuracy_norm"] == found["shuffled_norm"] == 0
