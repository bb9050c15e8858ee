"""What every line chart is drawn with: round ticks, linear and logarithmic axes, thinned and smoothed lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

POINTS = 600  # of a line, at most: the least and the greatest of each of 300 equal parts
LOG_FROM = 10.0  # greatest over least value from which the logarithmic axis is shown first
SMOOTHED_FROM = 25  # points of a line
Point = tuple[float, float | None]
Place = Callable[[float], float | None]  # value -> height in percent, None where the axis has no place for it


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them, the extremes among them."""
    if len(points) <= POINTS:
        return list(points)
    kept = []
    for part in np.array_split(np.arange(len(points)), POINTS // 2):
        there = [i for i in part if points[i][1] is not None] or [part[0]]
        kept += sorted({min(there, key=lambda i: points[i][1] or 0), max(there, key=lambda i: points[i][1] or 0)})
    return [points[i] for i in kept]


def smooth(points: Sequence[Point]) -> list[Point]:
    """A mean over 4 % of the points on either side; over fewer near the start, where losses fall fast."""
    values = np.array([np.nan if y is None else y for _, y in points], np.float64)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    counts = np.concatenate([[0], np.cumsum(~np.isnan(values))])
    at = np.arange(len(points))
    reach = np.minimum(at, len(points) // 25)
    left, right = at - reach, np.minimum(at + reach + 1, len(points))
    means = (sums[right] - sums[left]) / np.maximum(counts[right] - counts[left], 1)
    return [(x, None if y is None else float(mean)) for (x, y), mean in zip(points, means, strict=True)]


def linear_scale(values: Sequence[float]) -> tuple[list[float], Place]:
    """Round ticks from 0 (or a round number below the least value) to above the greatest, and the axis."""
    low, high = min(0.0, *values), max(0.0, *values)
    ticks = steps(low, high if high > low else low + 1, 4)
    return ticks, lambda y: 100 * (y - ticks[0]) / (ticks[-1] - ticks[0])


def log_scale(values: Sequence[float]) -> tuple[list[float], Place]:
    """Ticks at 1, 2, 5 x 10^n (over many decades at 10^n), and the axis."""
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.04 * (high - low) - 0.01, high + 0.04 * (high - low) + 0.01
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [d * 10.0**n for n in range(math.floor(low), math.ceil(high)) for d in digits]
    ticks = [y for y in ticks if low <= math.log10(y) <= high] or sorted({min(values), max(values)})
    ticks = ticks[:: 1 + len(ticks) // 8]
    return ticks, lambda y: 100 * (math.log10(y) - low) / (high - low) if y > 0 else None


def steps(low: float, high: float, parts: int) -> list[float]:
    """Multiples of 1, 2 or 5 x 10^n from at most `low` to at least `high`, in about so many parts."""
    rough = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(d for d in (1, 2, 5, 10) if d * power >= rough * 0.999)
    multiples = range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)
    return [float(f"{i * step:.12g}") for i in multiples]  # 0.3, not 0.30000000000000004


def outline(points: Sequence[Point]) -> str:
    """An SVG path through (x, y); a stretch between gaps begins with a dot, so one point alone is seen."""
    strokes, inside = [], False
    for x, y in thin(points):
        if y is not None:
            strokes.append(f"L{x:.2f} {y:.2f}" if inside else f"M{x:.2f} {y:.2f}h0")
        inside = y is not None
    return "".join(strokes)
