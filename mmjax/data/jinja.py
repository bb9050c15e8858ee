"""Chat templates in Jinja, as checkpoints bring them: a conversation to texts, special tokens and pictures.

The template sees the turns' real texts, with marks in them that no text has: one behind every reply, one in place
of every picture, and one inside whatever spells a special token. So a special token in what it makes is its own,
and what the marks have moved to tells which part of it is a reply. A reply begins where the prompt for it ends:
the template is asked for that prompt too.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.data.marks import MARK, count_marks, escape_marks, split_marks
from mmjax.data.sandbox import Template, TemplateError
from mmjax.types import Turn

_END, _BREAK, _PICTURE, _POISON = (chr(0x10FFF0 + i) for i in range(4))  # code points that no text has
_MARKS = re.compile(f"[{_END}{_BREAK}{_PICTURE}{_POISON}]")
_WORD = "mmjaxprobe"
# Which roles' contents are lists of {'type': 'text', ...} and {'type': 'image'}, the others plain strings.
_LISTS = (("system", "user", "assistant"), ("user",), ())

# Text, a special token's id, or None for a picture; and its weight as a target, None for what no reply says.
Stretch = tuple[str | int | None, float | None]


class JinjaTemplate:
    """A template with the tokens that it may write.

    opening: white space that it writes before a reply, behind the prompt for it. close: what ends a reply, up to a
    special token; '' if what it writes behind replies has none. Then `eos` ends them: a model that learned a space
    or a line's end for it would stop at the first one.
    """

    def __init__(
        self,
        source: str,
        names: Mapping[str, str],
        specials: Mapping[str, tuple[int, bool, bool]],
        image_token: str,
        eos: int | None,
        spelled: Collection[str] = (),
    ):
        """
        Args:
          names: what the template calls tokens: 'bos_token' -> '<s>'.
          specials: special tokens: text -> (id, whether it takes the space before it, and behind it).
          image_token: the special token that the template writes for a picture.
          eos: the token that ends replies where the template has none for that, None if there is no such token.
          spelled: special tokens that a reply may spell.

        Raises:
          TemplateError: it is no template, or writes no conversation down.
        """
        self.source, self.names = source, dict(names)
        self.specials = {name: token for name, token in specials.items() if len(name) > 1}  # one cannot be broken
        self.image_token, self.eos = image_token, eos
        self._allowed = frozenset(spelled)
        self._template = Template(source)
        longest = sorted(self.specials, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._special = re.compile("|".join([*map(self._around, longest), _END]))
        self._first = re.compile("[" + "".join(re.escape(c) for c in sorted({n[0] for n in longest})) + "]")
        self._lists = self._find_lists()
        self.opening, self.close = self._find_frame()

    @property
    def close_ids(self) -> tuple[int, ...]:
        """The special tokens that end a reply."""
        return tuple(self.specials[name][0] for name in self._spelled.findall(self.close))

    def stretches(self, turns: Sequence[Turn], generate: bool) -> list[Stretch]:
        """The conversation in order; with the opening of a reply at its end if `generate`, else with the weights
        of a training example: each reply with what ends it is a target. An `eos` that the template leaves out
        stands behind the replies that weigh anything; what is read and not learned stands as in a prompt.

        Raises:
          TemplateError: the template does not take such a conversation, or its prompt for a reply is not how it
            writes that reply down.
        """
        text = self._written(turns, generate)
        targets = [] if generate else self._targets(turns, text)
        pictures = sum(count_marks(turn.text) for turn in turns)
        found = self._cut(text, targets)
        if (shown := sum(content is None for content, _ in found)) != pictures:
            token = f"as far as {self.image_token!r} stands for one"
            raise TemplateError(f"the chat template shows {shown} of {pictures} pictures, {token}")
        return found

    def _around(self, name: str) -> str:
        _, before, behind = self.specials[name]
        return (r"\s*" if before else "") + f"(?:{re.escape(name)})" + (r"\s*" if behind else "")

    def _written(self, turns: Sequence[Turn], generate: bool) -> str:
        """The template's text; what a turn says never adds a special token to it."""
        text = self._render([self._message(turn) for turn in turns], generate)
        if any(self._first.search(turn.text) for turn in turns):
            # A template that cuts texts up could join what the marks keep apart.
            harmless = [dataclasses.replace(turn, text=self._poisoned(turn)) for turn in turns]
            again = self._render([self._message(turn) for turn in harmless], generate)
            if self._spelled.findall(text) != self._spelled.findall(again):
                raise TemplateError("the chat template makes a special token of what a turn says")
        return text

    def _poisoned(self, turn: Turn) -> str:
        allowed = self._allowed if turn.role == "assistant" else ()

        def harmless(text: str) -> str:
            begin, parts = 0, []
            for match in self._spelled.finditer(text) if allowed else ():
                if match[0] in allowed:
                    parts += [self._first.sub("?", text[begin : match.start()]), match[0]]
                    begin = match.end()
            return "".join(parts) + self._first.sub("?", text[begin:])

        return MARK.join(escape_marks(harmless(part)) for part in split_marks(turn.text))

    def _render(self, messages: list[dict[str, Any]], generate: bool) -> str:
        given = dict(messages=messages, tools=None, documents=None, add_generation_prompt=generate)
        return self._template.render(**self.names, **given)

    def _message(self, turn: Turn, lists: Sequence[str] | None = None) -> dict[str, Any]:
        """What the template gets of a turn. White space behind a reply is left out, as generation does it."""
        reply = turn.role == "assistant"
        parts = [self._marked(part, reply) for part in split_marks(turn.text.rstrip() if reply else turn.text)]
        if turn.role not in (self._lists if lists is None else lists):
            return dict(role=turn.role, content=_PICTURE.join(parts) + _END * reply)
        content: list[dict[str, str]] = []
        for k, part in enumerate(parts):
            if k:
                content.append(dict(type="image"))
                part = part.removeprefix("\n")  # the template says how a picture stands beside text
            if k < len(parts) - 1:
                part = part.removesuffix("\n")
            if part or len(parts) == 1:
                content.append(dict(type="text", text=part))
        if reply:
            last = content[-1] if content[-1]["type"] == "text" else dict(type="text", text="")
            content += [] if last is content[-1] else [last]
            last["text"] += _END
        return dict(role=turn.role, content=content)

    def _marked(self, text: str, reply: bool) -> str:
        """A text in which no special token is spelled but what a reply may spell."""

        def broken(match: re.Match[str]) -> str:
            return match[0] if reply and match[0] in self._allowed else match[0][0] + _BREAK + match[0][1:]

        return self._spelled.sub(broken, _MARKS.sub("\ufffd", text))

    def _find_lists(self) -> Sequence[str]:
        """The form of contents that the template understands, lists preferred: they show it pictures."""
        turns = Turn("user", _WORD), Turn("assistant", _WORD)
        trouble: TemplateError | None = None
        for lists in _LISTS:
            try:
                text = self._render([self._message(turn, lists) for turn in turns], False)
            except TemplateError as error:
                trouble = error
                continue
            if text.count(_WORD) == 2 and not re.search(rf"""["']: ?["']{_WORD}""", text):  # no list spelled out
                return lists
        if trouble is not None:
            raise trouble
        raise TemplateError("the chat template leaves out what a user asks, or an assistant answers")

    def _find_frame(self) -> tuple[str, str]:
        """What stands around a reply: white space before it, and all up to the first special token behind it."""
        asked, said = (self._message(Turn(role, _WORD)) for role in ("user", "assistant"))
        text = self._render([asked, said], False)
        tail = text[text.index(_END) + 1 :]
        special = self._spelled.search(tail)
        prompt = self._render([asked], True)
        before = text[len(prompt) : text.rindex(_WORD)] if text.startswith(prompt) else ""
        return before if before.isspace() else "", tail[: special.end()] if special else ""

    def _targets(self, turns: Sequence[Turn], text: str) -> list[tuple[int, int, float | None]]:
        """Where in the text each reply begins and ends, and what it weighs as a target, None for nothing."""
        if not self.close and self.eos is None:
            raise TemplateError(
                "the chat template does not end replies, and the tokenizer names no eos: a model learns no end"
            )
        targets, place = [], 0
        for k, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self._written(turns[:k], True)
            if not text.startswith(prompt):
                same = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
                raise TemplateError(
                    f"the chat template opens reply {len(targets) + 1} by {_shown(prompt[same:])}, "
                    f"but writes it down as {_shown(text[same:])}"
                )
            place = text.find(_END, len(prompt))
            if place < 0:
                raise TemplateError(f"the chat template leaves out reply {len(targets) + 1}")
            end = place + 1 + (len(self.close) if text.startswith(self.close, place + 1) else 0)
            targets.append((len(prompt), end, turn.weight or None))
        if text.count(_END) != len(targets):
            raise TemplateError("the chat template writes a reply down twice")
        return targets

    def _cut(self, text: str, targets: Sequence[tuple[int, int, float | None]]) -> list[Stretch]:
        found: list[Stretch] = []
        edges = sorted(edge for target in targets for edge in target[:2])

        def weight(place: int) -> float | None:
            return next((weight for begin, end, weight in targets if begin <= place < end), None)

        def plain(begin: int, end: int) -> None:
            inner = [begin, *(edge for edge in edges if begin < edge < end), end]
            for a, b in itertools.pairwise(inner):
                pieces = text[a:b].split(_PICTURE)
                for k, piece in enumerate(pieces):
                    found.extend([(None, None)] if k else [])
                    if piece := _MARKS.sub("", piece):
                        found.append((piece, weight(a)))

        place = 0
        for match in self._special.finditer(text):
            plain(place, match.start())
            if match[0] == _END:
                if not self.close and weight(match.start()):
                    found.append((self.eos, weight(match.start())))
                place = match.end()
                continue
            name = match[0].strip() if match[0] not in self.specials else match[0]
            picture = name == self.image_token
            begin = match.start() + match[0].index(name)
            found.append((None, None) if picture else (self.specials[name][0], weight(begin)))
            place = match.end()
        plain(place, len(text))
        return found


def _shown(text: str) -> str:
    return repr(_MARKS.sub("", text)[:60])
