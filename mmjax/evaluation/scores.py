"""Scores of answers against references."""

from __future__ import annotations

import collections
import re


def words(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation parts them."""
    return re.findall(r"\w+", text.lower())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it stands (Rajpurkar et al.
    2016, section 6.1, articles kept)."""
    given, wanted = words(prediction), words(reference)
    common = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0
