"""What data sets are, in English prose without pictures: the descriptions that TFDS carries of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from mmjax.data.corpora.base import CorpusBuilder
from mmjax.types import Sample, Turn


class Corpus(CorpusBuilder):
    """Config `first_paragraph`: 'What is the data set mnist?', answered by how its description begins."""

    name = "dataset_cards"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="first_paragraph", description="A question and its answer.")]
    DESCRIPTION = "Questions about data sets, for text-only turns."
    LICENSE = "Apache-2.0"
    ATTRIBUTION = "Descriptions by the TensorFlow Datasets authors and those of the data sets."
    HOMEPAGE = "https://www.tensorflow.org/datasets"
    SPLITS = ("train",)
    PICTURED = False

    def samples(self, split: str) -> Iterator[Sample]:
        for file in sorted((Path(tfds.__file__).parent / "datasets").glob("*/README.md")):
            paragraphs = [" ".join(part.split()) for part in file.read_text("utf-8").split("\n\n")]
            prose = [text for text in paragraphs if text.endswith(".") and text[0].isalpha()]
            if prose:
                question = f"What is the data set {file.parent.name}?"
                turns = (Turn("user", question), Turn("assistant", prose[0]))
                yield Sample(id=file.parent.name, turns=turns)
