"""Drawings that stand alone: SVG with its own colours and fonts, and text whose width is known well enough."""

from __future__ import annotations

import re
from typing import Any

from mmjax.evaluation.markup import Html, tag

INK, SOFT, FAINT, RULE, RIGHT, WRONG = "#16191d", "#5d6670", "#8b949e", "#e3e6e9", "#1a7f3c", "#b4391f"
COLOURS = ("#1f5fbf", "#d9730d", "#2b8a57", "#a23b8f", "#b4391f", "#1795a5", "#8a6d1a", "#5d6670")  # of systems
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, 'Liberation Sans', sans-serif"
WIDTH, MARGIN = 920, 18  # px
_UNSEEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what no XML may hold


def colour(system: int) -> str:
    """The colour of the system of this number."""
    return COLOURS[system % len(COLOURS)]


def page(height: float, title: str, *children: Html) -> str:
    """An SVG document, white, WIDTH wide and a margin on all sides."""
    wide, high = WIDTH + 2 * MARGIN, round(height + 2 * MARGIN)
    paper = tag("rect", x=-MARGIN, y=-MARGIN, width=wide, height=high, fill="#fff")
    size = dict(viewBox=f"{-MARGIN} {-MARGIN} {wide} {high}", width=wide, height=high)
    named = dict(role="img", aria_label=clean(title), font_family=FONT, fill=INK)
    return tag("svg", paper, *children, xmlns="http://www.w3.org/2000/svg", **size, **named) + "\n"


def words(x: float, y: float, content: str, size: float = 12, **style: Any) -> Html:
    """A line of text with its baseline at y."""
    return tag("text", clean(content), x=f"{x:g}", y=f"{y:g}", font_size=f"{size:g}", **style)


def clean(content: str) -> str:
    """Text without what XML forbids, whatever a model has answered."""
    return _UNSEEN.sub("\ufffd", content)


def width(content: str, size: float) -> float:
    """About how wide a line of text is, in px: the widths of Arial, a little rounded up."""
    return size * sum(_em(sign) for sign in content)


def _em(sign: str) -> float:
    if sign in "iljtfrI.,:;'|!()[] ":
        return 0.34
    if ord(sign) >= 0x1100:  # Chinese, Japanese, Korean, emoji
        return 1.05
    return 0.9 if sign in "mwMW@%" else 0.7 if sign.isupper() else 0.57


def wrap(content: str, size: float, most: float, lines: int) -> list[str]:
    """The text in lines at most so wide and at most so many, the last one cut off with '…' if need be."""
    found, rest = [], " ".join(clean(content).split())
    while rest and len(found) < lines:
        end = _fitting(rest, size, most)
        if end == len(rest):
            return [*found, rest]
        if len(found) == lines - 1:
            end = _fitting(rest, size, most - size)
            return [*found, rest[:end].rstrip() + "…"]
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        found.append(rest[:end])
        rest = rest[end:].lstrip()
    return found


def _fitting(content: str, size: float, most: float) -> int:
    """How many of its signs stand in a line, one at least."""
    taken = 0.0
    for i, sign in enumerate(content):
        taken += size * _em(sign)
        if taken > most:
            return max(1, i)
    return len(content)
