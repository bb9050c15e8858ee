"""`mmjax prepare`: everything that a config's training reads, made once."""

from __future__ import annotations

import itertools
from pathlib import Path

from absl import logging

from mmjax.config import Config
from mmjax.data import corpora
from mmjax.data import prepare as data
from mmjax.data.tokenizer import train_sentencepiece


def prepare(config: Config) -> None:
    """Builds the corpora of all stages in `data_dir` and, where the tokenizer has a `train` section, trains it."""
    specs = [
        spec for stage in config.stages for spec in (stage.data, *([stage.valid.data] if stage.valid else []))
    ]
    for spec in specs:
        data.prepare(spec, config.data_dir)
    benchmarks = (config.evaluation or {}).values()
    named = [value for benchmark in benchmarks for value in benchmark.values() if isinstance(value, str)]
    corpora.prepare(named, config.data_dir)
    spec = config.tokenizer
    if "train" in spec and not Path(spec["path"]).exists():
        texts = itertools.chain.from_iterable(data.texts(s, config.data_dir) for s in specs)
        tokenizer = train_sentencepiece(texts, spec["path"], **spec["train"])
        logging.info("Trained a tokenizer of %d pieces: %s", tokenizer.vocab_size, spec["path"])
