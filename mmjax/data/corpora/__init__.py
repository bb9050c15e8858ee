"""Corpora that installed packages carry, built once into ArrayRecord files by TFDS, without TensorFlow.

A corpus is a module of this folder, or of one's own (`corpus:my_package.birds/CONFIG/SPLIT`), with a class
`Corpus`, a subclass of `base.CorpusBuilder`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from mmjax.errors import MissingFile, UserError
from mmjax.typed import suggest

PREFIX = "corpus:"


def parse(path: str) -> tuple[str, str, str]:
    """'corpus:NAME/CONFIG/SPLIT' -> (NAME, CONFIG, SPLIT).

    Raises:
      UserError: not of this form.
    """
    parts = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or len(parts) != 3 or not all(parts):
        raise UserError(f"path: {path!r} is not of the form 'corpus:NAME/CONFIG/SPLIT'.")
    return parts[0], parts[1], parts[2]


def builder(path: str, data_dir: str):
    """The TFDS builder of the corpus a path names.

    Raises:
      UserError: no such corpus or config; says the nearest right one.
    """
    name, config, _ = parse(path)
    try:
        module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name not in (name, f"{__name__}.{name}"):
            raise
        known = [m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"]
        raise UserError(f"path: {path!r} names no corpus" + suggest(name, known)) from None
    configs = [c.name for c in module.Corpus.BUILDER_CONFIGS]
    if config not in configs:
        raise UserError(f"path: {path!r}: {name} has no config {config!r}" + suggest(config, configs))
    return module.Corpus(config=config, data_dir=data_dir, file_format="array_record")


def open_corpus(path: str, data_dir: str):
    """The samples of one split of a corpus that has been built in `data_dir`.

    Raises:
      UserError: no such corpus, config or split.
      MissingFile: it has not been built.
    """
    from mmjax.data.corpora.base import CorpusSource

    split = parse(path)[2]
    made = builder(path, data_dir)
    if not made.is_prepared():
        raise MissingFile(f"{path!r} is not in {data_dir!r} yet: run `mmjax prepare` with this config.")
    if split not in made.info.splits:
        raise UserError(f"path: {path!r} has no split {split!r}" + suggest(split, made.info.splits))
    return CorpusSource(made, split)


def prepare(paths: Iterable[str], data_dir: str) -> None:
    """Builds the corpora that `paths` name (other paths are passed over), and prints whose work they are.

    A corpus appears under its name only when it is whole: a build that was killed starts anew.
    """
    done = set()
    for path in paths:
        if path.startswith(PREFIX) and parse(path)[:2] not in done:
            done.add(parse(path)[:2])
            builder(path, data_dir).prepare()
