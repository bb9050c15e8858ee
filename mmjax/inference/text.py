"""From tokens to the text of an answer, at once or as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what a character decodes to while some of its bytes are still to come


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first place where any of `stops` begins, and whether there was one."""
    places = [place for place in map(text.find, filter(None, stops)) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class TextStream:
    """An answer that comes token by token. What has been given out is never taken back: text that may still turn
    out to be the beginning of a stop string, or of a character, waits."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], opening: str = ""):
        """decode: token ids -> text. stops: strings before which the answer ends. opening: as for `answer`."""
        self._decode, self._stops, self._opening = decode, tuple(stops), opening
        self._ids: list[int] = []
        self._given = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """What has been given out so far."""
        return self._given

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that can be given out now, often ''."""
        self._ids.append(token)
        text, self.stopped = cut(self._text(), self._stops)
        return self._give(text if self.stopped else text[: len(text) - self._held(text)])

    def finish(self) -> str:
        """The rest of the text, once no token comes any more."""
        text, self.stopped = cut(self._text(), self._stops)
        return self._give(text)

    def _text(self) -> str:
        return self._decode(self._ids).removeprefix(self._opening)

    def _give(self, text: str) -> str:
        text = text.rstrip()
        new, self._given = text[len(self._given) :], text
        return new

    def _held(self, text: str) -> int:
        """How many characters at the end have to wait."""
        tail = len(text) - len(text.rstrip(_UNFINISHED))
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), tail, -1):
                if text.endswith(stop[:size]):
                    tail = size
                    break
        return tail


def answer(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], stops: Sequence[str], opening: str = ""
) -> str:
    """The text of an answer: what a TextStream gives out in all. Its first line keeps its indentation.

    opening: white space that the chat template writes before a reply, which is left out.
    """
    return cut(decode(ids).removeprefix(opening), stops)[0].rstrip()
