"""From a data spec to batches: sources -> lengths -> plan -> rows -> Grain.

data = make_dataset(spec, tokenizer, span=16, splice=True, rows=steps * batch, seed=0, ...)
for batch in data.batches(batch, start=step): ...
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from mmjax.build import section
from mmjax.data.chat import Chat
from mmjax.data.content import digest
from mmjax.data.packing import Lengths, make_plan
from mmjax.data.quarantine import LINE, BadRecord, Quarantine
from mmjax.data.rows import Feed, Rows, empty_row
from mmjax.data.sandbox import TemplateError
from mmjax.data.sources import open_source
from mmjax.data.spec import DataSpec
from mmjax.data.spelled import NotListed
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import UserError
from mmjax.types import Batch

CHUNK = 256  # samples measured at a time
PROCESSES_FROM = 20_000  # samples; a smaller source is measured before a worker process has started


def make_dataset(
    spec: DataSpec | Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    span: int,
    splice: bool,
    rows: int | None,
    seed: int,
    data_dir: str,
    quarantine: str | os.PathLike[str],
    stage: str = "",
    split: str = "train",
    vocab: int | None = None,
) -> Dataset:
    """Opens the sources of a data spec (spec.py tells its keys), measures every sample and plans the rows.

    Args:
      span, splice, vocab: how a medium stands in the text, and which tokens can, as for chat.Chat.
      rows: number of rows to plan, steps x batch; None for one pass over everything.
      data_dir: where `mmjax prepare` has put the corpora.
      quarantine: file that refused records are written to, as those of `stage` and `split`.

    Raises:
      UserError: a key or a source is wrong, as for `open_feeds`.
      TooManyBadRecords: a source has lost more than `max_refused` of its records.
    """
    where = f"{stage}.{'valid.' * (split == 'valid')}data" if stage else "data"
    spec = section(DataSpec, spec, where)
    feeds = open_feeds(spec, tokenizer, span, splice, data_dir, where, vocab)
    sizes = {feed.name: len(feed.source) for feed in feeds}
    bad = Quarantine(quarantine, sizes, spec.max_refused, stage, split)
    lengths = [measure(feed, spec, bad, spec.sources[feed.name].weight) for feed in feeds]
    plan = make_plan(lengths, rows, spec.length, spec.media.slots, seed, spec.pack)
    return Dataset(Rows(spec, feeds, plan, seed, bad))


def open_feeds(
    spec: DataSpec,
    tokenizer: Tokenizer,
    span: int,
    splice: bool,
    data_dir: str,
    where: str,
    vocab: int | None = None,
) -> list[Feed]:
    """Opens the sources of a data spec, each with the template that it is written down by.

    Args: as for `make_dataset`; where: the spec's path in the config, for messages.

    Raises:
      UserError: a key or a source is wrong; says which and what would be right.
    """
    views, feeds = spec.media.make_views(), []
    if not splice and not spec.media.slots:
        raise UserError(f"{where}.media.slots: is 0; cross-attention requires 1, and a row may leave it empty.")
    if splice and spec.media.slots and spec.media.token not in tokenizer.special_tokens():
        known = ", ".join(sorted(tokenizer.special_tokens()))
        raise UserError(
            f"{where}.media.token: the tokenizer has no special token {spec.media.token!r}; it has {known}."
        )
    for name, part in spec.sources.items():
        try:
            source = open_source(part.path, part.root, data_dir)
        except UserError as error:
            raise type(error)(f"{where}.sources.{name}.{error}") from error
        template = part.template or spec.template
        try:
            chat = make_chat(spec, tokenizer, span, splice, template, vocab, part.special_tokens)
        except NotListed as error:
            raise UserError(f"{where}.sources.{name}.special_tokens: {error}") from error
        except TemplateError as error:
            key = f"sources.{name}.template" if part.template else "template"
            raise TemplateError(f"{where}.{key}: {error}") from error
        except UserError as error:
            raise type(error)(f"{where}.{error}") from error
        feeds.append(Feed(name, source, chat, views, part.augment, part.turns))
    return feeds


def make_chat(
    spec: DataSpec,
    tokenizer: Tokenizer,
    span: int,
    splice: bool,
    template: str,
    vocab: int | None = None,
    special_tokens: Sequence[str] | None = None,
) -> Chat:
    """How conversations of a data spec are written down; special_tokens: what replies may spell, None for what
    those of any of its sources may.

    Raises:
      UserError: as for chat.Chat; views of several tiles where the model takes one medium at a time.
    """
    if spec.media.make_views().sized and not splice:
        raise UserError(f"media.views: {spec.media.views['type']} wants a model with fusion='splice'.")
    if special_tokens is None:
        special_tokens = list(dict.fromkeys(name for one in spec.sources.values() for name in one.special_tokens))
    settings = spec.bidirectional_images, spec.media.token, vocab, special_tokens
    return Chat(template, tokenizer, span, splice, *settings)


def measure(feed: Feed, spec: DataSpec, bad: Quarantine, weight: float) -> Lengths:
    """Tokens and pictures of every sample of a source; this is where bad records are found, before training."""
    total = len(feed.source)
    workers = spec.workers if total >= PROCESSES_FROM else 0
    tokens, media = (np.zeros(total, np.int32) for _ in range(2))
    content = np.zeros(total, np.uint64)
    done = cut = 0
    unread: collections.Counter[str] = collections.Counter()
    letters: collections.Counter[str] = collections.Counter()
    with tqdm(total=total, desc=f"measuring {feed.name}", unit=" samples", delay=2, mininterval=1) as bar:
        for lengths, counts, cuts, digests, keys, spelled, errors in _stream(
            _Chunks(feed, spec), spec.threads, workers
        ):
            here = slice(done, done + len(lengths))
            tokens[here], media[here], content[here] = lengths, counts, digests
            cut += int(cuts.sum())
            unread.update(keys)
            letters.update(spelled)
            for error in errors:
                bad.add(feed.name, BadRecord(*error), measured=True)
            done += len(lengths)
            bar.update(len(lengths))
    if cut:
        logging.warning(
            "Source %r: %d of %d samples lose their end to the row's length of %d tokens and %d pictures.",
            *(feed.name, cut, total, spec.length, spec.media.slots),
        )
    if unread:
        named = ", ".join(f"{key} (of {n:,})" for key, n in unread.most_common(20))
        logging.warning("Source %r: keys of records that are not read: %s.", feed.name, named)
    if letters:
        logging.warning("%s", feed.chat.spelled.advice(feed.name, letters))
    return Lengths(tokens, media, weight, content)


class _Chunks:
    """A source in chunks of CHUNK samples, measured: per sample its tokens (0 if it is refused), its pictures and
    whether it was cut, and a digest of its content; how many have which key that is not read; how often
    replies spell which special token in letters; and the errors of those refused."""

    def __init__(self, feed: Feed, spec: DataSpec):
        self.feed, self.spec = feed, spec

    def __len__(self) -> int:
        return -(-len(self.feed.source) // CHUNK)

    def __getitem__(self, chunk: int) -> tuple[Any, ...]:
        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.feed.source)))
        found, errors = np.zeros((3, len(indices)), np.int32), []
        digests = np.zeros(len(indices), np.uint64)
        unread: collections.Counter[str] = collections.Counter()
        letters: collections.Counter[str] = collections.Counter()
        for k, index in enumerate(indices):
            try:
                sample, encoded = self.feed.encode(index, self.spec)
            except BadRecord as error:
                errors.append((error.id, error.reason, error.line[:LINE]))
            else:
                found[:, k] = len(encoded), encoded.media_count, encoded.cut > 0
                digests[k] = digest(sample, encoded)
                unread.update(sample.unread)
                letters.update(self.feed.chat.spelled.letters(sample.turns))
        return (*found, digests, unread, letters, errors)


def _stream(source: Any, threads: int, workers: int, start: int = 0) -> Iterator[Any]:
    """The items of something with a length and an index, in order, read ahead by threads or processes."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    stream = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's worker pool reads absl flags, which a notebook never parses
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


class Dataset:
    """Rows of a plan: random access by row, batches by step."""

    def __init__(self, rows: Rows):
        self.rows, self.plan, self.feeds, self.quarantine = rows, rows.plan, rows.feeds, rows.quarantine

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def fill(self) -> float:
        """The share of token slots that hold a token."""
        return self.plan.fill

    @property
    def fingerprint(self) -> str:
        """The same for the same order of the same samples; their content stands behind a hyphen."""
        return f"{self.plan.fingerprint}-{self.plan.content}"

    def continues(self, fingerprint: str) -> bool:
        """Whether a run that has kept this fingerprint goes on with the same data. One without a hyphen, as mmjax
        wrote it before it knew contents, tells their order and lengths alone."""
        return fingerprint == (self.fingerprint if "-" in fingerprint else self.plan.fingerprint)

    @property
    def chat(self) -> Chat:
        """How the first source is written down: for prompts like its training examples."""
        return self.feeds[0].chat

    def row(self, r: int) -> Batch:
        """Row r, without a batch axis."""
        return self.rows[r]

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Names of the samples in some rows, for messages."""
        return [self._id(source, index) for r in rows for source, index in self.plan.row(r)]

    def _id(self, source: int, index: int) -> str:
        try:
            return self.feeds[source].source[index].id
        except BadRecord as error:  # its picture is gone, say
            return error.id

    def batches(self, batch: int, start: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Batches of numpy arrays from step `start` on, until the planned rows are used up.

        The global batch of a step is the same rows in the same order for any number of processes; the last one
        is filled up with empty rows.

        Args:
          batch: rows of a global batch; this process gets its share of `batch // processes`, contiguous.
          start: number of steps (batches) already taken.

        Raises:
          UserError: `batch` does not divide by `processes`.
        """
        if batch % processes:
            raise UserError(f"A batch of {batch} rows cannot be shared by {processes} processes evenly.")
        steps = _Steps(self.rows, batch, process, processes)
        return _stream(steps, self.rows.spec.threads, self.rows.spec.workers, start)


class _Steps:
    """The batches of one process by step, as Grain wants them: with a length and an index."""

    def __init__(self, rows: Rows, batch: int, process: int, processes: int):
        self.rows, self.batch = rows, batch
        self.local = batch // processes
        self.first = process * self.local

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __getitem__(self, step: int) -> Batch:
        begin = step * self.batch + self.first
        planned = len(self.rows)
        rows = [
            self.rows[r] if r < planned else empty_row(self.rows.spec) for r in range(begin, begin + self.local)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
