"""HTML that cannot be broken by what it shows, and numbers as people write them."""

from __future__ import annotations

import math
import numbers
from html import escape
from typing import Any

VOID = ("br", "img", "input", "link", "meta")


class Html(str):
    """Text that is HTML already; any other text is escaped by `tag`."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """`tag("p", "1 < 2", _class="note")` is `<p class="note">1 &lt; 2</p>`; what is None is left out."""
    given = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None)
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inner}</{name}>")


def section(title: str, note: str | None, *children: Any) -> Html:
    """A part of the page under its heading, `note` in small words below it."""
    return tag("section", tag("h2", title), note and tag("p", note, _class="note"), *children)


def number(value: Any) -> float | None:
    """The value, if it is a finite number (bool is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def spoken(name: str) -> str:
    """A key as a name: 'easy_vqa' -> 'easy-vqa'."""
    return name.replace("_", "-")


def percent(share: float) -> str:
    """0.934 -> '93.4 %'."""
    return f"{100 * share:.1f}\u202f%"


def count(value: Any) -> str | None:
    """1488640 -> '1,488,640'; None for what is no number."""
    value = number(value)
    return None if value is None else f"{value:,.0f}"


def short(value: float, digits: int = 4) -> str:
    """To about so many digits: 0.0213, 3.941, 1,076, 12.4k, 1.489M, 2e−5."""
    for least, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.{digits}g}{unit}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return text.replace("e-0", "e-").replace("-", "−")


def duration(seconds: Any) -> str | None:
    """564 -> '9 min 24 s'; None for what is no number."""
    seconds = number(seconds)
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
