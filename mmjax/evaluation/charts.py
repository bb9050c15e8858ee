"""Line charts for the report: an SVG whose lines stretch to any width, and words beside it which do not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from mmjax.evaluation.axes import (
    LOG_FROM,
    SMOOTHED_FROM,
    Place,
    Point,
    linear_scale,
    log_scale,
    outline,
    smooth,
    steps,
    thin,
)
from mmjax.evaluation.markup import Html, short, tag


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
    linear = _plot(title, series, end, unit, *linear_scale(values))
    if not log or min(values) <= 0:
        return tag("figure", tag("figcaption", tag("h4", title), *keys), linear, _class="wide" if log else None)
    checked = "checked" if max(values) > LOG_FROM * min(values) else None
    switch = tag("label", tag("input", type="checkbox", checked=checked), "log", _class="switch")
    plots = (linear, _plot(title, series, end, unit, *log_scale(values)))
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
            placed = smooth(placed)
        lines.append(_line(placed, s.kind))
    words = [
        tag("span", short(y) + unit, _class="y", style=f"bottom:{height:.2f}%")
        for y, height in zip(ticks, heights, strict=True)
    ]
    words += [
        tag("span", f"{'' if x else 'step '}{short(x)}", _class="x", style=f"left:{100 * x / end:.2f}%")
        for x in steps(0, end, 4)
        if x <= end
    ]
    read_out = {"end": end, "unit": unit, "series": [[s.label, thin(s.points)] for s in series]}
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
    placed = [(x, None if height is None else 100 - height) for x, height in points]
    return tag("path", d=outline(placed), _class=f"line {kind}")
