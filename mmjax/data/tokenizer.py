"""Text to token ids and back, behind one small interface.

Special tokens are reached by name only (`special`), never through text: whatever a user types, `encode`
yields ordinary tokens, so that a turn cannot be closed, nor a picture invented, from inside a turn.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers

from mmjax.errors import MissingFile, UserError
from mmjax.typed import suggest

# Names that control a conversation even where a tokenizer.json does not flag them as special.
CONTROL = ("<image>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>")


class Tokenizer(Protocol):
    """What chat.py and generation need of a tokenizer. `bos`, `eos` and `pad` are ids, or None: `bos` is what
    texts begin with. stops: ids that end a reply whatever the template. names: what Jinja templates call tokens,
    'bos_token' -> '<s>'. begins: whether a conversation whose template in Jinja writes no bos begins with it all
    the same, as processors of `transformers` have it. model_max_length: positions that the model knows, 0 if that
    is not said."""

    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None
    stops: Sequence[int]
    names: Mapping[str, str]
    begins: bool
    model_max_length: int

    def encode(self, text: str, start: bool = True) -> tuple[list[int], list[int]]:
        """(ids, ends): ends[i] is the offset, in characters, behind the last character token i helps to spell.

        start: whether the text opens the sequence; some tokenizers put a space before it only there.
        """

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids; special tokens are left out, unless they are asked for."""

    def special(self, name: str) -> int:
        """The id of a special token. Raises UserError if there is none of this name."""

    def special_tokens(self) -> Mapping[str, tuple[int, bool, bool]]:
        """name -> (id, whether it takes the space before it, and behind it)."""


def check_embedded(ids: np.ndarray, vocab: int | None, tokenizer: Tokenizer) -> None:
    """Raises UserError if one of a text's ids is beyond the first `vocab`, which a model embeds; None for all."""
    if vocab is not None and (beyond := ids[ids >= vocab]).size:
        first = int(beyond[0])
        names = {number: name for name, (number, *_) in tokenizer.special_tokens().items()}
        raise UserError(
            f"the text has the token {first}, {names.get(first) or tokenizer.decode([first])!r}; the model embeds "
            f"only the first {vocab} tokens of its tokenizer (model.backbone.vocab)."
        )


def _plain_text(
    encode: Callable[[str, bool], tuple[list[int], list[int]]],
    text: str,
    start: bool,
    forbidden: frozenset[int],
) -> tuple[list[int], list[int]]:
    """encode(text, start), cutting text that would become a forbidden token in two, so that it stays text."""
    ids, ends = encode(text, start)
    if forbidden.isdisjoint(ids):
        return ids, ends
    spans = [(b, e) for token, b, e in zip(ids, [0, *ends], ends, strict=False) if token in forbidden]
    if any(end - begin < 2 for begin, end in spans):
        raise UserError(f"The tokenizer turns a single character of {text!r} into a special token.")
    cuts = [0, *(begin + 1 for begin, _ in spans), len(text)]
    ids, ends = [], []
    for begin, end in itertools.pairwise(cuts):
        part = _plain_text(encode, text[begin:end], start and begin == 0, forbidden)
        ids += part[0]
        ends += [begin + offset for offset in part[1]]
    return ids, ends


class _FromBytes:
    """Holds a model's bytes and opens them on first use, so that the object travels to worker processes."""

    def __init__(self, path: str | os.PathLike[str]):
        try:
            self._bytes = Path(path).read_bytes()
        except FileNotFoundError:
            raise MissingFile(
                f"No tokenizer at {os.fspath(path)!r}. `mmjax prepare` makes that of a quickstart."
            ) from None
        self.path = os.fspath(path)

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "_model"}

    def special(self, name: str) -> int:
        if name not in self._specials:
            message = f"The tokenizer {self.path} has no special token {name!r}"
            raise UserError(message + suggest(name, self._specials))
        return self._specials[name]

    def special_tokens(self) -> Mapping[str, tuple[int, bool, bool]]:
        return {name: (i, False, False) for name, i in self._specials.items()}


class SentencePiece(_FromBytes):
    """A sentencepiece model file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        stops: Sequence[int] = (),
        names: Mapping[str, str] | None = None,
        begins: bool = False,
        model_max_length: int = 0,
    ):
        """path: the model. The others: as of Tokenizer."""
        super().__init__(path)
        self.begins, self.model_max_length = begins, model_max_length
        self.stops, self.names = tuple(stops), dict(names or {})
        try:
            model = self._model
        except RuntimeError as error:
            raise UserError(f"path: {path} is no sentencepiece model, or damaged.") from error
        self.vocab_size = model.vocab_size()
        self.bos, self.eos, self.pad = (
            i if i >= 0 else None for i in (model.bos_id(), model.eos_id(), model.pad_id())
        )
        names = {model.id_to_piece(i): i for i in range(self.vocab_size)}
        self._specials = {n: i for n, i in names.items() if model.is_control(i) or n in CONTROL}
        self._forbidden = frozenset(self._specials.values())

    @functools.cached_property
    def _model(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self._bytes)

    def _encode(self, text: str, start: bool) -> tuple[list[int], list[int]]:
        del start  # the model's own settings say where spaces are added
        found = self._model.encode(text, return_type="offset_mapping")
        ends = [end for _, end in found["offsets"]]
        for k in range(len(ends) - 2, -1, -1):
            begin, end = found["offsets"][k]
            if begin == end:  # a byte of a character whose extent is given to its last byte alone
                ends[k] = ends[k + 1]
        return found["ids"], ends

    def encode(self, text: str, start: bool = True) -> tuple[list[int], list[int]]:
        return _plain_text(self._encode, text, start, self._forbidden)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        names = {i: name for name, i in self._specials.items()} if special else {}
        runs = [(name, list(run)) for name, run in itertools.groupby(map(int, ids), names.get)]
        return "".join(name * len(run) if name else self._model.decode(run) for name, run in runs)


class HFTokenizer(_FromBytes):
    """A Hugging Face `tokenizer.json`."""

    # Stands in front of a text that does not open its sequence: a code point that no text has.
    _BEFORE = "\U0010fffe"

    def __init__(
        self,
        path: str | os.PathLike[str],
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        extra: Sequence[str] = (),
        stops: Sequence[int] = (),
        names: Mapping[str, str] | None = None,
        begins: bool = False,
        model_max_length: int = 0,
    ):
        """
        Args:
          path: the `tokenizer.json`.
          bos, eos, pad: names of the tokens with these roles, None where the model has none.
          extra: special tokens to add behind the vocabulary, such as '<image>' for a text-only tokenizer.
          stops, names, begins, model_max_length: as of Tokenizer.
        """
        super().__init__(path)
        self.begins, self.model_max_length = begins, model_max_length
        self.stops, self.names = tuple(stops), dict(names or {})
        named = (bos, eos, pad, *self.names.values())
        self._control = frozenset({*CONTROL, *(name for name in named if name)})
        self._extra = tuple(extra)
        added = self._model.get_added_tokens_decoder()
        self._stripping = {token.content: (token.lstrip, token.rstrip) for token in added.values()}
        self._specials = {token.content: i for i, token in added.items() if token.special}
        self.vocab_size = self._model.get_vocab_size() - 1  # without _BEFORE, which was added last
        model = json.loads(self._bytes)["model"]
        unknown = self._specials.get(model.get("unk_token"), model.get("unk_id"))  # what odd characters become
        self._forbidden = frozenset(self._specials.values()) - {unknown}
        self.bos, self.eos, self.pad = (None if name is None else self.special(name) for name in (bos, eos, pad))

    @functools.cached_property
    def _model(self) -> tokenizers.Tokenizer:
        spec = json.loads(self._bytes)
        for token in spec["added_tokens"]:
            token["special"] |= token["content"] in self._control
        model = tokenizers.Tokenizer.from_str(json.dumps(spec))
        model.no_padding()
        model.no_truncation()
        there = {token["content"] for token in spec["added_tokens"]}
        roles = sorted(self._control - there - set(CONTROL))
        model.add_special_tokens([name for name in roles if model.token_to_id(name) is not None])
        model.add_special_tokens(list(self._extra))
        model.add_tokens([tokenizers.AddedToken(self._BEFORE, normalized=False)])
        return model

    def _encode(self, text: str, start: bool) -> tuple[list[int], list[int]]:
        given = text if start else self._BEFORE + text
        found = self._model.encode(given, add_special_tokens=False)
        skip = 0 if start else 1
        return found.ids[skip:], [end - skip for _, end in found.offsets[skip:]]

    def encode(self, text: str, start: bool = True) -> tuple[list[int], list[int]]:
        text = text.replace(self._BEFORE, "\ufffd")
        return _plain_text(self._encode, text, start, self._forbidden)

    def special_tokens(self) -> Mapping[str, tuple[int, bool, bool]]:
        return {name: (i, *self._stripping[name]) for name, i in self._specials.items()}

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return self._model.decode([int(i) for i in ids], skip_special_tokens=not special)


def train_sentencepiece(
    texts: Iterable[str], path: str | os.PathLike[str], vocab_size: int, specials: Sequence[str] = ()
) -> SentencePiece:
    """Trains a byte-pair tokenizer with byte fallback and writes it to `path`: the same texts, the same bytes.

    Ids: 0 <pad>, 1 <s>, 2 </s>, 3 <unk>, then `specials`, 256 bytes, pieces. Every text survives
    encode and decode, but for U+2581, which sentencepiece keeps for spaces.

    Raises:
      UserError: `vocab_size` is more than the texts can fill, or too small for their characters.
    """
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            control_symbols=list(specials),
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,  # bytes; longer lines would be left out without a word
            num_threads=1,  # one thread, so that the result never depends on their order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"No tokenizer with vocab_size={vocab_size} from these texts: {error}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.getvalue())
    partial.replace(path)
    return SentencePiece(path)
