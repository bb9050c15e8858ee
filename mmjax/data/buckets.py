"""Few compiled programs for many calls: shapes come in buckets."""

from __future__ import annotations


def bucket(size: int, smallest: int = 16) -> int:
    """The next of smallest * (1, 1.5, 2, 3, 4, 6, 8, ...) that holds `size`: at most half as much again."""
    step = smallest
    while step < size:
        if step + step // 2 >= size:
            return step + step // 2
        step *= 2
    return step
