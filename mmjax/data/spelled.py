"""Special tokens that replies spell: tokens where their source says so (`special_tokens`), letters elsewhere."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Sequence

from mmjax.data.marks import split_marks
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import UserError
from mmjax.typed import suggest
from mmjax.types import Turn


class NotListed(UserError):
    """A name that `special_tokens` of a source may not hold, and why."""


class SpelledTokens:
    """The special tokens of a tokenizer in the texts of replies.

    tokens: those that replies may spell: name -> id.
    """

    def __init__(
        self, names: Sequence[str], tokenizer: Tokenizer, ends: Collection[int], pictures: Collection[str]
    ):
        """
        Args:
          names: what a source lists. A token that is one wherever it is written (Qwen's <tool_call>) needs no list
            and may stand in it.
          ends: ids that end a reply. pictures: names of tokens that stand where a picture does.

        Raises:
          NotListed: there is no token of a name, or it ends a reply, or marks a picture.
        """
        every = tokenizer.special_tokens()
        self._reserved = {name for name, (i, *_) in every.items() if i in ends} | set(pictures)
        self.tokens: dict[str, int] = {}
        for name in names:
            if name in self._reserved:
                what = "stands where a picture does" if name in pictures else "ends a reply"
                raise NotListed(f"{name!r} {what}: no reply may spell it.")
            if name in every:
                self.tokens[name] = every[name][0]
            elif not name or len(tokenizer.encode(name, False)[0]) != 1:
                raise NotListed(f"the tokenizer has no token {name!r}" + suggest(name, every))
        strips = {name: (r"\s*" * before, r"\s*" * behind) for name, (_, before, behind) in every.items()}
        longest = sorted((name for name in every if len(name) > 1), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        around = (strips[name][0] + re.escape(name) + strips[name][1] for name in longest)
        self._split = re.compile("|".join(around) or r"(?!)")

    def split(self, text: str) -> list[str | int]:
        """A reply's plain text as texts, and ids of the tokens that it may spell, each with the white space that
        it takes from around it."""
        found: list[str | int] = []
        begin = 0
        for match in self._split.finditer(text) if self.tokens else ():
            name = match[0] if match[0] in self.tokens else match[0].strip()
            if name in self.tokens:
                found += [text[begin : match.start()], self.tokens[name]]
                begin = match.end()
        return [part for part in (*found, text[begin:]) if part != ""]

    def letters(self, turns: Iterable[Turn]) -> collections.Counter[str]:
        """How often replies spell which special token that stays letters."""
        texts = (part for turn in turns if turn.role == "assistant" for part in split_marks(turn.text))
        found = collections.Counter(name for text in texts for name in self._spelled.findall(text))
        return collections.Counter({name: n for name, n in found.items() if name not in self.tokens})

    def advice(self, name: str, letters: collections.Counter[str]) -> str:
        """What a log says of tokens that the replies of source `name` spell in letters; '' if there are none."""
        if not letters:
            return ""
        shown = ", ".join(f"{token!r} ({n:,} times)" for token, n in letters.most_common(20))
        said = f"Source {name!r}: replies spell special tokens, which are read as letters: {shown}."
        more = [token for token, _ in letters.most_common(20) if token not in self._reserved]
        return said + (
            f" sources.{name}.special_tokens={[*self.tokens, *more]} makes them tokens." if more else ""
        )
