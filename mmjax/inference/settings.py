"""How answers are decoded: the settings, their ranges, and which of them go together."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np

from mmjax.errors import UserError
from mmjax.typed import TINY, Count, Natural, NotNegative, Range, check_types, hints_of, range_of


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are decoded; temperature, top_k and top_p as for `sample.generate`.

    max_new: most tokens of an answer. seed: of the randomness; the same seed, the same answers.
    stop: strings before which an answer ends, besides the template's own end.
    beams, length_penalty: beams > 1 searches instead of drawing (inference/beam.py); its temperature is 0. What is
      found is cut before a stop string of several tokens, and a search ends at one that is a token.
    special_tokens: whether answers show special tokens (marks of tools, of thinking, of places in a picture), but
      for those that end an answer or pad it. Later turns of a conversation have them as text.
    top_k, top_p: only where something is drawn, at a temperature above 0.

    Raises:
      UserError: a value of another type or outside its range, or beams with a temperature.
    """

    max_new: Count = 128
    temperature: NotNegative = 0.0
    top_k: Natural = 0
    top_p: Annotated[float, Range(TINY, 1)] = 1.0
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # above it, jax.random.key wraps around
    stop: tuple[str, ...] = ()
    beams: Count = 1
    length_penalty: float = 1.0
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                value = value.item()
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
            check_setting(name, getattr(self, name))
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"sampling.beams: {self.beams} beams search for the likeliest answer and draw none: with a "
                f"temperature of 0, not {self.temperature:g}."
            )

    def but(self, **changes: Any) -> Sampling:
        """These settings with others: beams among them end drawing, a temperature among them ends a search."""
        if changes.get("beams", 1) > 1:
            changes = {"temperature": 0.0} | changes
        if changes.get("temperature", 0) > 0:
            changes = {"beams": 1} | changes
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        if self.beams > 1:
            how = f"found by {self.beams} beams, length_penalty {self.length_penalty:g}"
        elif self.temperature > 0:
            how = f"drawn at temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g}"
        else:
            how = "the likeliest token each time"
        return f"up to {self.max_new} tokens, {how}"


HINTS = hints_of(Sampling)


def check_setting(name: str, value: Any, where: str = "sampling") -> None:
    """Raises UserError for a value that a field of Sampling cannot have, with its range."""
    try:
        check_types({name: value}, {name: HINTS[name]}, where)
    except UserError as error:
        allowed = range_of(HINTS[name])
        raise UserError(f"{error} It is {allowed}." if allowed else str(error)) from None
    if name == "stop" and "" in value:
        raise UserError(f"{where}.stop: an empty string would end every answer before it begins.")
