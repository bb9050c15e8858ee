"""easy-VQA: one coloured shape a picture of 64 x 64, about ten simple questions each (Victor Zhou, 2019)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from mmjax.data.corpora.base import CorpusBuilder, need
from mmjax.types import Sample, Turn

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
KINDS = ("shape", "colour", "presence", "absence")
_NEGATED = re.compile(r"\b(not|no)\b")


class Corpus(CorpusBuilder):
    """Configs: `captions`, `conversations`, `questions`; splits: the official `train` and `test`."""

    name = "easy_vqa"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="captions", description="A short caption of each picture."),
        tfds.core.BuilderConfig(name="conversations", description="All questions of a picture as turns."),
        tfds.core.BuilderConfig(name="questions", description="One question a record, for evaluation."),
    ]
    DESCRIPTION = "Simple questions on pictures of one coloured shape."
    LICENSE = "MIT"
    ATTRIBUTION = "easy-VQA by Victor Zhou, from the package easy-vqa."
    HOMEPAGE = "https://github.com/vzhou842/easy-VQA"

    def samples(self, split: str) -> Iterator[Sample]:
        package = need("easy_vqa")
        paths = getattr(package, f"get_{split}_image_paths")()
        asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for question, answer, picture in zip(*getattr(package, f"get_{split}_questions")(), strict=True):
            asked[picture].append((question, answer))
        make = {"captions": _captions, "conversations": _conversation, "questions": _questions}
        for picture in sorted(asked):
            png = Path(paths[picture]).read_bytes()
            for suffix, turns in make[self.builder_config.name](asked[picture]):
                yield Sample(id=f"{split}/{picture}{suffix}", turns=turns, images=(png,))


def kind_of(question: str) -> str:
    """One of KINDS: what is asked for, or for a yes/no question whether it asks for presence or for absence."""
    if question.startswith(("what color", "what is the color")):
        return "colour"
    if question.startswith("what"):
        return "shape"
    return "absence" if _NEGATED.search(question) else "presence"


def caption(asked: list[tuple[str, str]]) -> str:
    """What (question, answer) pairs tell of a picture: 'a blue rectangle', 'a blue shape', ... '' for nothing."""
    known = set()
    for question, answer in asked:
        words = set(re.findall(r"[a-z]+", question))
        if answer in ("yes", "no"):
            if (answer == "yes") != (kind_of(question) == "absence"):
                known |= words  # what is asked for is there
        else:
            known |= words | {answer}
    colour, shape = (next((w for w in options if w in known), "") for options in (COLOURS, SHAPES))
    return f"a {colour} {shape or 'shape'}".replace("  ", " ") if colour or shape else ""


def _captions(asked):
    text = caption(asked)
    return [("", (Turn("user", "<image>"), Turn("assistant", text)))] if text else []


def _conversation(asked):
    turns = []
    for question, answer in asked:
        turns += [Turn("user", question if turns else f"<image>\n{question}"), Turn("assistant", answer)]
    return [("", tuple(turns))]


def _questions(asked):
    for number, (question, answer) in enumerate(asked):
        turns = (Turn("user", f"<image>\n{question}"), Turn("assistant", answer))
        yield f"/{number}/{kind_of(question)}", turns
