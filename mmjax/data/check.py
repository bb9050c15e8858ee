"""What a sample must be to train on, whatever the template."""

from __future__ import annotations

from mmjax.data.marks import MARK, count_marks, split_marks
from mmjax.errors import UserError
from mmjax.types import Sample


def check_role(role: str) -> None:
    """Raises UserError for a role that no conversation has."""
    if role not in ("system", "user", "assistant"):
        raise UserError(f"unknown role {role!r}")


def check_sample(sample: Sample) -> None:
    """Raises UserError, saying why, for what is no training example."""
    marks = sum(count_marks(turn.text) for turn in sample.turns)
    if marks != len(sample.images):
        raise UserError(f"has {marks} {MARK} marks for {len(sample.images)} pictures")
    for turn in sample.turns:
        check_role(turn.role)
        if turn.role == "assistant" and not "".join(split_marks(turn.text)).strip():
            raise UserError("has an empty answer")
    replies = [turn for turn in sample.turns if turn.role == "assistant"]
    if not any(turn.weight for turn in replies):
        raise UserError("has no target: all answers have the weight 0" if replies else "has no answer")
