"""What a template's rendering may cost: every step and every text it makes is paid for, in characters."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

BUDGET = 10_000_000  # characters that a rendering may make, beyond a share of those it was given
TURN = 50  # what one turn of a loop, one call or one item of a list costs in characters
SECONDS = 10.0  # longest a rendering may take


class _Left:
    """What a rendering may still make."""

    def __init__(self, given: int):
        self.left, self.end = BUDGET + 100 * given, time.monotonic() + SECONDS

    def pay(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise SecurityError("it makes more text, or takes more steps, than a template may")
        if time.monotonic() > self.end:
            raise SecurityError(f"it takes longer than {SECONDS:g} s")


_left: contextvars.ContextVar[_Left | None] = contextvars.ContextVar("left", default=None)


@contextlib.contextmanager
def budget(given: int) -> Iterator[None]:
    """One rendering, of `given` characters."""
    token = _left.set(_Left(given))
    try:
        yield
    finally:
        _left.reset(token)


def pay(size: int) -> None:
    """Pays for `size` characters. Raises SecurityError where there is no budget left."""
    if (left := _left.get()) is not None:
        left.pay(size)


def pay_for(*values: Any) -> None:
    """Pays for the text that values would make, everything inside them as often as it is inside."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        pay(len(value) if isinstance(value, str) else TURN)
        if isinstance(value, Mapping):
            waiting += itertools.chain.from_iterable(value.items())
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, range):
            pay(8 * len(value))
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise SecurityError("it makes a number beyond all bounds")


def pay_replaced(text: str, old: str, new: str, *_: Any) -> None:
    """Pays for text.replace(old, new)."""
    pay(text.count(old) * len(new) + len(text))


def pay_joined(separator: str, parts: list[Any]) -> None:
    """Pays for separator.join(parts)."""
    pay_for(parts)
    pay(len(separator) * len(parts))
