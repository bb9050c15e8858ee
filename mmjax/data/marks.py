"""The mark of a picture in a turn's text, `<image>`; behind a backslash, `\\<image>`, it is the word itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from mmjax.types import Turn

MARK = "<image>"
_MARK = re.compile(r"(?<!\\)" + re.escape(MARK))


def count_marks(text: str) -> int:
    """How many pictures a turn's text marks."""
    return len(_MARK.findall(text))


def split_marks(text: str) -> list[str]:
    """The texts before, between and behind the marks, as plain text: an escaped mark in them is the word."""
    return [unescape_marks(part) for part in _MARK.split(text)]


def escape_marks(text: str) -> str:
    """Plain text as a turn's text that marks no picture: `split_marks` gives it back as one part."""
    return text.replace(MARK, "\\" + MARK)


def unescape_marks(text: str) -> str:
    """A text that marks no picture as plain text."""
    return text.replace("\\" + MARK, MARK)


def without_marks(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns of a conversation without pictures: whatever they say, it marks none."""
    return tuple(dataclasses.replace(turn, text=_MARK.sub(r"\\" + MARK, turn.text)) for turn in turns)
