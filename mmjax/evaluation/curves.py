"""The training loss of every stage of several runs: a panel per stage, a colour per system, a line per seed."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.evaluation.axes import LOG_FROM, SMOOTHED_FROM, Point, linear_scale, log_scale, outline, smooth, steps
from mmjax.evaluation.markup import Html, number, short, tag
from mmjax.evaluation.runs import System
from mmjax.evaluation.svg import FAINT, RULE, SOFT, WIDTH, colour, page, width, words

GAP, PLOT = 36, 230  # px: between panels; height of a plot
LEFT, TOP, BOTTOM = 44, 38, 56  # px around a plot
CROSS_ENTROPY = "objectives.language.next_token"
Line = tuple[int, list[Point]]  # number of the system; (step, loss) by step


def loss_curves(systems: Sequence[System]) -> str | None:
    """An SVG document; None if no run has metrics."""
    runs = [run for s in systems for run in s.runs]
    stages = dict.fromkeys(stage for run in runs for stage in run.config.get("stages") or ())
    panels = {stage: _lines(systems, stage) for stage in stages}
    panels = {stage: lines for stage, lines in panels.items() if lines}
    if not panels:
        return None
    legend, top = _legend(systems)
    columns = min(2, len(panels))
    across, down = (WIDTH - GAP * (columns - 1)) / columns, TOP + PLOT + BOTTOM
    drawn = [
        tag(
            "g",
            *_panel(stage, lines, across, _loss(systems, stage)),
            transform=f"translate({i % columns * (across + GAP):g} {top + i // columns * down:g})",
        )
        for i, (stage, lines) in enumerate(panels.items())
    ]
    height = top + (len(panels) + columns - 1) // columns * down
    return page(height - BOTTOM + 40, f"Training loss of {', '.join(s.name for s in systems)}", *legend, *drawn)


def _lines(systems: Sequence[System], stage: str) -> list[Line]:
    """The losses of each run that has any."""
    lines = []
    for i, s in enumerate(systems):
        for run in s.runs:
            logged = [line for line in run.metrics(stage) if "loss" in line]
            points: list[Point] = [(line["step"], number(line["loss"])) for line in logged]
            if any(y is not None for _, y in points):
                lines.append((i, points))
    return lines


def _loss(systems: Sequence[System], stage: str) -> str:
    """What the loss is, with its unit where it has one."""
    specs = [run.config.get(stage) or {} for s in systems for run in s.runs]
    losses = [spec for stage in specs for spec in (stage.get("losses") or {}).values()]
    plain = all(spec.get("type") == CROSS_ENTROPY and spec.get("weight") == 1 for spec in losses)
    return "training loss, nats per token" if losses and plain else "training loss"


def _legend(systems: Sequence[System]) -> tuple[list[Html], float]:
    """A key per system, in as many rows as they need, and where the panels begin."""
    drawn, x, y = [], 0.0, 14.0
    for i, s in enumerate(systems):
        label = s.name + (f" ({len(s.runs)} seeds)" if len(s.runs) > 1 else "")
        needed = 24 + width(label, 13) + 20
        if x and x + needed > WIDTH:
            x, y = 0.0, y + 22
        drawn.append(tag("path", d=f"M{x + 4:g} {y - 4:g}h16", stroke=colour(i), stroke_width=3))
        drawn.append(words(x + 26, y, label, 13))
        x += needed
    return drawn, y + 18


def _panel(stage: str, lines: Sequence[Line], across: float, loss: str) -> list[Html]:
    """One stage: title, axes and lines, from (0, 0) on."""
    values = [y for _, points in lines for _, y in points if y is not None]
    end = max(1, *(points[-1][0] for _, points in lines))
    log = min(values) > 0 and max(values) > LOG_FROM * min(values)
    ticks, place = (log_scale if log else linear_scale)(values)
    wide = across - LEFT - 8

    def spot(point: Point) -> Point:
        x, y = point
        height = None if y is None else place(y)
        return LEFT + wide * x / end, None if height is None else TOP + PLOT * (1 - height / 100)

    drawn = [words(0, 18, stage, 14, font_weight=600)]
    drawn.append(words(across - 8, 18, loss + (" (log scale)" if log else ""), 11, fill=SOFT, text_anchor="end"))
    for tick in ticks:
        _, y = spot((0, tick))
        drawn.append(tag("path", d=f"M{LEFT} {y:.1f}h{wide:g}", stroke=RULE))
        drawn.append(words(LEFT - 8, round(y + 4, 1), short(tick), 11, fill=SOFT, text_anchor="end"))
    drawn.append(tag("path", d=f"M{LEFT} {TOP + PLOT}h{wide:g}", stroke=FAINT))
    for tick in (tick for tick in steps(0, end, 5) if tick <= end):
        x, _ = spot((tick, None))
        drawn.append(words(round(x, 1), TOP + PLOT + 17, short(tick), 11, fill=SOFT, text_anchor="middle"))
    drawn.append(words(LEFT + wide / 2, TOP + PLOT + 35, "step", 11, fill=SOFT, text_anchor="middle"))
    style = dict(fill="none", stroke_width=1.75, stroke_linejoin="round", stroke_linecap="round")
    for system, points in lines:
        placed = [spot(point) for point in points]  # smoothed as it is seen, as in charts.py
        placed = smooth(placed) if len(placed) >= SMOOTHED_FROM else placed
        drawn.append(tag("path", d=outline(placed), stroke=colour(system), stroke_opacity=0.85, **style))
    return drawn
