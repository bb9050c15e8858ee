"""A conversation to tokens, target weights, picture spans and slots, in one pass, turn by turn.

Text between two special tokens is tokenised as one string, so that ids equal those of tokenising the whole
rendered conversation; which of the tokens are targets follows from where in that string they end.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, dropwhile

import numpy as np

from mmjax.data.check import check_role, check_sample
from mmjax.data.encoded import ARRAYS, Encoded
from mmjax.data.jinja import JinjaTemplate
from mmjax.data.marks import MARK, split_marks, without_marks
from mmjax.data.patches import mrope_positions
from mmjax.data.quarantine import BadRecord
from mmjax.data.spelled import SpelledTokens
from mmjax.data.templates import Template, open_template
from mmjax.data.tokenizer import Tokenizer, check_embedded
from mmjax.data.views import Layout, Token
from mmjax.errors import UserError
from mmjax.types import Sample, Turn

_PICTURE = object()  # stands in a list of pieces where a picture is
_BEGIN = object()  # and where a tokenizer begins a text


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text, one special token's id, or a picture; `weight` as a target, None outside replies."""

    content: str | int | object
    weight: float | None = None


class Chat:
    """A template, a tokenizer, and how a picture stands in the text."""

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        span: int,
        splice: bool,
        bidirectional_images: bool = False,
        image_token: str = MARK,
        vocab: int | None = None,
        special_tokens: Sequence[str] = (),
    ):
        """
        Args:
          template: a name in templates.TEMPLATES, or one in Jinja: 'file:PATH' or 'jinja:SOURCE'.
          span: number of projected tokens of a medium; a picture takes as many in the text, unless a Layout says
            otherwise.
          splice: whether projected features replace these tokens (slot = medium * span + k), or the text only
            marks the place and looks at the picture by cross-attention (slot = -1).
          bidirectional_images: whether the tokens of a picture, of each stretch of it between special tokens, see
            one another.
          image_token: name of the token that stands where projected ones come, where the tokenizer names none
            itself; wanted once there is a picture.
          vocab: tokens that the model embeds; further ones can only stand where projected ones come.
          special_tokens: names of special tokens that replies may spell.

        Raises:
          UserError: no such template, or the tokenizer lacks a token that it needs; NotListed, as SpelledTokens.
        """
        self.tokenizer, self.span, self.splice = tokenizer, span, splice
        self.bidirectional_images = bidirectional_images
        self._vocab = vocab
        self._image_token = tokenizer.names.get("image_token", image_token)
        opened = open_template(template)
        self.template, self.jinja = (opened, None) if isinstance(opened, Template) else (Template(""), None)
        if isinstance(opened, str):
            special = tokenizer.special_tokens()
            names = tokenizer.names, special, self._image_token
            self.jinja = JinjaTemplate(opened, *names, tokenizer.eos, frozenset(special_tokens))
        self._names = {"{bos}": tokenizer.bos, "{eos}": tokenizer.eos}
        self._names |= {name: tokenizer.special(name) for name in self.template.specials}
        self._split = re.compile("(" + "|".join(map(re.escape, self._names)) + ")")
        self._parts: dict[tuple[str, float | None], list[Piece]] = {}  # the template's strings, cut up once
        if "{eos}" in self.template.reply_close and tokenizer.eos is None:
            raise UserError(f"template: {template!r} ends replies with {{eos}}, which the tokenizer lacks.")
        self.spelled = SpelledTokens(special_tokens, tokenizer, self.stop_ids, {self._image_token, MARK})

    @functools.cached_property
    def _image_id(self) -> int:
        return self.tokenizer.special(self._image_token)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply."""
        eos = (self.tokenizer.eos,) if self.jinja and self.tokenizer.eos is not None else ()
        return tuple(dict.fromkeys((*self._close_ids, *eos, *self.tokenizer.stops)))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a reply, where a template of ours has no token for that."""
        close = self.template.reply_close
        return () if self.jinja or self._close_ids or not close else (close,)

    @property
    def opening(self) -> str:
        """White space that the template puts before a reply: no part of an answer."""
        return self.jinja.opening if self.jinja else self.template.reply_open

    @property
    def _close_ids(self) -> tuple[int, ...]:
        """The tokens by which the template ends a reply."""
        if self.jinja:
            return self.jinja.close_ids
        ends = self._marked(self.template.reply_close, 1.0)
        return tuple(piece.content for piece in ends if isinstance(piece.content, int))

    def encode(self, sample: Sample, layouts: Sequence[Layout] = ()) -> Encoded:
        """One training example.

        Args:
          layouts: how each of its pictures stands in the text (data/views.py); () if each is one medium.

        Raises:
          BadRecord: an unknown role, an empty or no answer, tokens beyond `vocab`, or marks and pictures disagree.
        """
        try:
            if not sample.images:
                sample = dataclasses.replace(sample, turns=without_marks(sample.turns))
            check_sample(sample)
            return self._render(self._pieces(sample.turns), layouts)
        except UserError as error:
            raise BadRecord(sample.id, str(error)) from error

    def encode_prompt(self, turns: Sequence[Turn], layouts: Sequence[Layout] = ()) -> Encoded:
        """The conversation so far, up to where the assistant's reply begins: a prefix of what training saw.

        Args:
          layouts: as for `encode`.

        Raises:
          UserError: an unknown role, tokens beyond `vocab`, or the template takes no such conversation.
        """
        for turn in turns:
            check_role(turn.role)
        if self.jinja:
            return self._render(self._pieces_of(self.jinja.stretches(turns, generate=True)), layouts)
        opening = self._marked(self.template.assistant_open)
        return self._render([*self._pieces(turns), *opening], layouts)

    def fit(self, sample: Sample, encoded: Encoded, length: int, media_slots: int, truncate: bool) -> Encoded:
        """Shortens an example to `length` tokens and `media_slots` media, at a point outside any picture.

        Raises:
          BadRecord: it is too long and `truncate` is False, or no target would be left.
        """
        if len(encoded) <= length and encoded.media_count <= media_slots:
            return encoded
        what = f"{len(encoded)} tokens and {encoded.media_count} media"
        if not truncate:
            raise BadRecord(sample.id, f"has {what}; a row takes {length} and {media_slots}")
        begins, ends, media = encoded.pictures.T
        cut = min([length, *begins[np.cumsum(media) > media_slots], *begins[ends > length]])
        arrays = {name: getattr(encoded, name)[:cut] for name in ARRAYS}
        kept = Encoded(**arrays, pictures=encoded.pictures[begins < cut], cut=len(encoded) - cut)
        if not kept.loss_weight.any():
            reason = f"has {what}; no answer begins within {length} tokens and {media_slots} media"
            raise BadRecord(sample.id, reason)
        return kept

    def _pieces(self, turns: Iterable[Turn]) -> list[Piece]:
        """The conversation as pieces in order."""
        if self.jinja:
            return self._pieces_of(self.jinja.stretches(list(turns), generate=False))
        t, turns = self.template, list(turns)
        if t.prompt_text and t.system and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", t.system))
        pieces = list(self._marked(t.start))
        for turn in turns:
            text = turn.text.strip() if t.strip else turn.text.rstrip() if turn.role == "assistant" else turn.text
            if turn.role == "assistant":
                pieces += self._marked(t.assistant_open) + self._marked(t.reply_open, turn.weight)
                pieces += self._replied(_typed(text, turn.weight)) + self._marked(t.reply_close, turn.weight)
                pieces += self._marked(t.after_reply)
            elif t.prompt_text:
                opening, closing = (
                    (t.system_open, t.system_close) if turn.role == "system" else (t.user_open, t.user_close)
                )
                typed = _typed(text)
                if t.text_open and turn.role == "user":
                    typed = self._opened(typed)
                if t.picture_ends:
                    typed = self._ended(typed)
                pieces += self._marked(opening) + typed + self._marked(closing)
            else:
                pieces += [piece for piece in _typed(text) if piece.content is _PICTURE]
        return pieces

    def _replied(self, typed: list[Piece]) -> list[Piece]:
        """A reply, with the special tokens that it may spell."""
        parts = ((p, self.spelled.split(p.content) if p.content is not _PICTURE else [_PICTURE]) for p in typed)
        return [Piece(part, piece.weight) for piece, contents in parts for part in contents]

    def _pieces_of(self, stretches: Iterable[tuple[str | int | None, float | None]]) -> list[Piece]:
        """What a template in Jinja writes, behind a bos where the tokenizer alone puts one."""
        pieces = [Piece(_PICTURE if content is None else content, weight) for content, weight in stretches]
        bos = self.tokenizer.bos if self.tokenizer.begins else None
        written = bool(pieces) and pieces[0].content == bos
        return pieces if bos is None or written else [Piece(_BEGIN), *pieces]

    def _opened(self, typed: list[Piece]) -> list[Piece]:
        """A user turn with the template's `text_open` behind the pictures that it begins with."""
        rest = list(dropwhile(lambda p: p.content is _PICTURE or (p.content.isspace() and len(typed) > 1), typed))
        shown = [piece for piece in typed[: len(typed) - len(rest)] if piece.content is _PICTURE]
        if rest:
            rest[0] = dataclasses.replace(rest[0], content=rest[0].content.removeprefix("\n"))
        return shown + self._marked(self.template.text_open) + rest

    def _ended(self, typed: list[Piece]) -> list[Piece]:
        """A turn with the template's `picture_ends` around its pictures, and its texts without spaces around."""
        ends, pieces = self._marked(self.template.picture_ends), []
        for piece in typed:
            beside = bool(pieces) and pieces[-1:] == ends
            if piece.content is _PICTURE:
                pieces += [*([] if beside else ends), piece, *ends]
            elif text := piece.content.removeprefix("\n" if beside else "").strip(" "):
                pieces.append(dataclasses.replace(piece, content=text))
        return pieces

    def _marked(self, text: str, weight: float | None = None) -> list[Piece]:
        """A template's own string: names of special tokens in it become those tokens."""
        if (text, weight) not in self._parts:
            parts = [self._names.get(part, part) for part in self._split.split(text)]
            self._parts[text, weight] = [Piece(part, weight) for part in parts if part not in ("", None)]
        return self._parts[text, weight]

    def _render(self, pieces: Iterable[Piece], layouts: Sequence[Layout]) -> Encoded:
        ids: list[int] = []
        weights: list[float | None] = []
        slots: list[int] = []
        pictures: list[tuple[int, int, int]] = []
        grids: list[tuple[int, tuple[int, int]]] = []
        pending: list[Piece] = []  # text since the last special token
        ahead, media, begun = iter(layouts), 0, False

        def flush() -> None:
            if pending:
                # Behind a bos, the first word is written as in a text of its own; a template in Jinja is one text.
                alone = len(ids) == 1 and ids[0] == self.tokenizer.bos
                opens = not ids or (alone and (begun or (self.template.begins and not self.jinja)))
                write(*self._encode_text(pending, opens))
                pending.clear()

        def write(tokens: list[int], targets: list[float | None], where: Sequence[int] | None = None) -> None:
            ids.extend(tokens)
            weights.extend(targets)
            slots.extend([-1] * len(tokens) if where is None else where)

        def place(layout: Layout, framed: bool) -> None:
            begin = len(ids) - framed
            for part in layout.pieces[1:-1] if framed else layout.pieces:
                if isinstance(part, np.ndarray):
                    flush()
                    if layout.grid:
                        grids.append((len(ids), layout.grid))
                    write([self._image_id] * len(part), [None] * len(part), part + media * self.span)
                elif isinstance(part, Token):
                    flush()
                    write([self.tokenizer.special(part)], [None])
                else:
                    pending.append(Piece(part))
            flush()
            pictures.append((begin, len(ids) + framed, layout.tiles))

        pieces = list(pieces)
        for k, piece in enumerate(pieces):
            if isinstance(piece.content, str):
                pending.append(piece)
                continue
            flush()
            if piece.content is _PICTURE:
                layout = next(ahead) if layouts else Layout(1, (np.arange(self.span),))
                place(layout, self._framed(layout, pieces[k - 1 : k + 2] if k else []))
                media += layout.tiles
            elif piece.content is _BEGIN:
                write([self.tokenizer.bos], [None])
                begun = True
            else:
                write([piece.content], [piece.weight])
        flush()
        positions = mrope_positions(len(ids), grids) if grids else np.arange(len(ids), dtype=np.int32)
        return self._arrays(ids, weights, slots, pictures, positions)

    def _framed(self, layout: Layout, around: Sequence[Piece]) -> bool:
        """Whether the template has written the tokens that a picture begins and ends with.

        around: the pieces before it, of it, and behind it.
        """
        names = layout.pieces[:1] + layout.pieces[-1:]
        if len(around) < 3 or len(layout.pieces) < 3 or not all(isinstance(name, Token) for name in names):
            return False
        return [self.tokenizer.special(name) for name in names] == [around[0].content, around[2].content]

    def _encode_text(self, pieces: Sequence[Piece], opens: bool) -> tuple[list[int], list[float | None]]:
        """Ids and target weights of adjacent texts, tokenised as one string."""
        ids, ends = self.tokenizer.encode("".join(piece.content for piece in pieces), opens)
        bounds = list(accumulate(len(piece.content) for piece in pieces))
        if len({piece.weight for piece in pieces}) == 1:
            return ids, [pieces[0].weight] * len(ids)
        said = [piece.weight is not None for piece in pieces]
        turning = [k for k in range(1, len(pieces)) if said[k] != said[k - 1]]
        if not {bounds[k - 1] for k in turning}.issubset(ends):
            # A token would straddle prompt and reply, and generation never sees such a token.
            halves = self._encode_text(pieces[: turning[0]], opens), self._encode_text(pieces[turning[0] :], False)
            return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
        return ids, [pieces[bisect_left(bounds, end)].weight for end in ends]

    def _arrays(self, ids: list[int], weights: list, slots: list[int], pictures, positions) -> Encoded:
        slot = np.asarray(slots, np.int32)
        causal = np.ones(len(ids), np.int32)
        visible = np.full(len(ids), -1, np.int32)
        if self.bidirectional_images:
            causal[1:][(slot[1:] >= 0) & (slot[:-1] >= 0)] = 0
        medium = 0
        for begin, _, tiles in pictures:
            visible[begin:] = medium
            causal[begin] = 1  # the token before may be another picture's
            medium += tiles
        if not self.splice:
            slot[:] = -1
        spans = np.asarray(pictures, np.int64).reshape(-1, 3)
        tokens, loss_weight = np.asarray(ids, np.int32), np.asarray([w or 0.0 for w in weights], np.float32)
        check_embedded(tokens[slot < 0], self._vocab, self.tokenizer)
        if self.template.prefix:
            prompt = np.asarray([weight is None for weight in weights])
            causal[1:][prompt[1:] & prompt[:-1]] = 0
        return Encoded(tokens, loss_weight, causal, slot, visible, positions, spans)


def _typed(text: str, weight: float | None = None) -> list[Piece]:
    """What somebody wrote: plain text, and a picture at each mark."""
    pieces = []
    for part in split_marks(text):
        pieces += [Piece(_PICTURE), Piece(part, weight)]
    return [piece for piece in pieces[1:] if piece.content]
