"""Line charts for the report: an SVG whose lines stretch to any width, and words beside it which do not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.evaluation.markup import Html, short, tag

POINTS = 600  # of a line, at most: the least and the greatest of each of 300 equal parts
LOG_FROM = 10.0  # greatest over least value from which the logarithmic axis is shown first
SMOOTHED_FROM = 25  # points of a line
Point = tuple[float, float | None]
Place = Callable[[float], float | None]  # value -> height in percent, None where the axis has no place for it


@dataclasses.dataclass(frozen=True)
class Series:
    """One line. kind: 'main' and 'second' are smoothed over a thin raw line, 'held' and 'exact' drawn as they are.

    points: (step, value) by step; None for a value leaves a gap.
    """

    label: str
    kind: str
    points: list[Point]

    def values(self) -> list[float]:
        """Those that are there."""
        return [y for _, y in self.points if y is not None]


def chart(title: str, series: Sequence[Series], end: float, unit: str = "", log: bool = False) -> Html:
    """A figure with the latest values in its caption, and a read-out where the pointer is.

    Args:
      series: those without a value are not drawn.
      end: the greatest step of the axis, which begins at 0.
      unit: written behind the values.
      log: make it wide, and offer a logarithmic axis too if all values are above 0.
    """
    series = [s for s in series if s.values()]
    if not series:
        return tag("figure", tag("figcaption", tag("h4", title)), tag("p", "not recorded", _class="note"))
    values = [y for s in series for y in s.values()]
    keys = [
        tag("span", f"{s.label} ".lstrip(), tag("b", short(s.values()[-1], 3) + unit), _class=f"key {s.kind}")
        for s in series
    ]
    linear = _plot(title, series, end, unit, *_linear(values))
    if not log or min(values) <= 0:
        return tag("figure", tag("figcaption", tag("h4", title), *keys), linear, _class="wide" if log else None)
    checked = "checked" if max(values) > LOG_FROM * min(values) else None
    switch = tag("label", tag("input", type="checkbox", checked=checked), "log", _class="switch")
    plots = (linear, _plot(title, series, end, unit, *_log(values)))
    plots = (tag("div", plot, _class=axis) for plot, axis in zip(plots, ("linear", "log"), strict=True))
    return tag("figure", tag("figcaption", tag("h4", title), *keys, switch), *plots, _class="wide")


def _plot(
    title: str, series: Sequence[Series], end: float, unit: str, ticks: Sequence[float], place: Place
) -> Html:
    heights = [place(y) for y in ticks]
    lines = [tag("path", d=f"M0 {100 - height:.2f}H100", _class="grid") for height in heights]
    lines.append(tag("path", d="M0 100H100", _class="base"))
    for s in reversed(series):
        # Smoothed as it is seen: on a logarithmic axis this is the geometric mean.
        placed = [(100 * x / end, None if y is None else place(y)) for x, y in s.points]
        if s.kind in ("main", "second") and len(placed) >= SMOOTHED_FROM:
            lines.append(_line(placed, f"{s.kind} raw"))
            placed = _smooth(placed)
        lines.append(_line(placed, s.kind))
    words = [
        tag("span", short(y) + unit, _class="y", style=f"bottom:{height:.2f}%")
        for y, height in zip(ticks, heights, strict=True)
    ]
    words += [
        tag("span", f"{'' if x else 'step '}{short(x)}", _class="x", style=f"left:{100 * x / end:.2f}%")
        for x in _steps(0, end, 4)
        if x <= end
    ]
    read_out = {"end": end, "unit": unit, "series": [[s.label, _thin(s.points)] for s in series]}
    shape = dict(viewBox="0 0 100 100", preserveAspectRatio="none")
    svg = tag("svg", *lines, **shape, role="img", aria_label=_summary(title, series, unit))
    return tag("div", svg, *words, _class="plot", data_read_out=json.dumps(read_out, separators=(",", ":")))


def _summary(title: str, series: Sequence[Series], unit: str) -> str:
    """The chart for those who do not see it."""
    parts = []
    for s in series:
        low, high, last = (short(y) + unit for y in (min(s.values()), max(s.values()), s.values()[-1]))
        parts.append(f"{s.label or title} from {low} to {high}, at last {last}")
    return f"{title}: " + "; ".join(parts)


def _line(points: Sequence[Point], kind: str) -> Html:
    """A path; a stretch between two gaps begins with a dot, so that one point alone is seen."""
    strokes, inside = [], False
    for x, height in _thin(points):
        if height is not None:
            spot = f"{x:.2f} {100 - height:.2f}"
            strokes.append(f"L{spot}" if inside else f"M{spot}h0")
        inside = height is not None
    return tag("path", d="".join(strokes), _class=f"line {kind}")


def _thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them, the extremes among them."""
    if len(points) <= POINTS:
        return list(points)
    kept = []
    for part in np.array_split(np.arange(len(points)), POINTS // 2):
        there = [i for i in part if points[i][1] is not None] or [part[0]]
        kept += sorted({min(there, key=lambda i: points[i][1] or 0), max(there, key=lambda i: points[i][1] or 0)})
    return [points[i] for i in kept]


def _smooth(points: Sequence[Point]) -> list[Point]:
    """A mean over 4 % of the points on either side; over fewer near the start, where losses fall fast."""
    values = np.array([np.nan if y is None else y for _, y in points], np.float64)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    counts = np.concatenate([[0], np.cumsum(~np.isnan(values))])
    at = np.arange(len(points))
    reach = np.minimum(at, len(points) // 25)
    left, right = at - reach, np.minimum(at + reach + 1, len(points))
    means = (sums[right] - sums[left]) / np.maximum(counts[right] - counts[left], 1)
    return [(x, None if y is None else float(mean)) for (x, y), mean in zip(points, means, strict=True)]


def _linear(values: Sequence[float]) -> tuple[list[float], Place]:
    """Round ticks from 0 (or a round number below the least value) to above the greatest, and the axis."""
    low, high = min(0.0, *values), max(0.0, *values)
    ticks = _steps(low, high if high > low else low + 1, 4)
    return ticks, lambda y: 100 * (y - ticks[0]) / (ticks[-1] - ticks[0])


def _log(values: Sequence[float]) -> tuple[list[float], Place]:
    """Ticks at 1, 2, 5 x 10^n (over many decades at 10^n), and the axis."""
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.04 * (high - low) - 0.01, high + 0.04 * (high - low) + 0.01
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [d * 10.0**n for n in range(math.floor(low), math.ceil(high)) for d in digits]
    ticks = [y for y in ticks if low <= math.log10(y) <= high] or sorted({min(values), max(values)})
    ticks = ticks[:: 1 + len(ticks) // 8]
    return ticks, lambda y: 100 * (math.log10(y) - low) / (high - low) if y > 0 else None


def _steps(low: float, high: float, parts: int) -> list[float]:
    """Multiples of 1, 2 or 5 x 10^n from at most `low` to at least `high`, in about so many parts."""
    rough = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(d for d in (1, 2, 5, 10) if d * power >= rough * 0.999)
    multiples = range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)
    return [float(f"{i * step:.12g}") for i in multiples]  # 0.3, not 0.30000000000000004
