"""A contact sheet: held-out pictures, the reference, and what each system answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mmjax.evaluation.gallery import balanced
from mmjax.evaluation.markup import Html, tag
from mmjax.evaluation.runs import System
from mmjax.evaluation.svg import RIGHT, RULE, SOFT, WIDTH, WRONG, colour, page, width, words, wrap

PICTURES = 18  # on the sheet, at most
KEPT, COLOURS = 112, 64  # px and colours of an embedded picture: PICTURES of any content stay under 300 kB
GAP, PAD, SHOWN, LINE, LABEL = 14, 12, 84, 18, 120  # px: between and in cards, a picture, a line, a system's name
Answers = list[tuple[int, Mapping[str, Any]]]  # number of the system, its example


def contact_sheet(systems: Sequence[System]) -> str | None:
    """An SVG document: of each benchmark the examples that all systems which kept examples of it share.

    The examples are those of each system's first run. None if there is nothing to show.
    """
    kept = [system.runs[0].examples() for system in systems]
    shared = {}
    for name in dict.fromkeys(name for examples in kept for name in examples):
        by_id = {i: {e["id"]: e for e in examples[name]} for i, examples in enumerate(kept) if examples.get(name)}
        ids = [key for key in next(iter(by_id.values()), {}) if all(key in found for found in by_id.values())]
        if ids:
            shared[name] = [[(i, found[key]) for i, found in by_id.items()] for key in ids]
    if not shared:
        return None
    label = min(LABEL, max(width(system.name, 12) for system in systems) + 6)
    columns = 3 if label < 0.7 * LABEL else 2
    drawn, y = [], 0.0
    for name, answers in shared.items():
        drawn.append(words(0, y + 14, f"Held-out pictures: {name.replace('_', ' ')}", 14, font_weight=600))
        y += 30
        chosen = balanced([first for (_, first), *_ in answers], max(columns, PICTURES // len(shared)))
        by_first = {id(group[0][1]): group for group in answers}
        groups = [by_first[id(example)] for example in chosen]
        for begin in range(0, len(groups), columns):
            row = groups[begin : begin + columns]
            cards, height = _row(row, [system.name for system in systems], (WIDTH + GAP) / columns - GAP, label)
            drawn.append(tag("g", *cards, transform=f"translate(0 {y:g})"))
            y += height + GAP
        y += 14
    return page(y - GAP - 14, "Held-out pictures with each system's answer", *drawn)


def _row(groups: Sequence[Answers], names: Sequence[str], across: float, label: float) -> tuple[list[Html], float]:
    """Cards side by side, all as high as the highest."""
    cards = [_card(group, names, across, label) for group in groups]
    height = max(high for _, high in cards)
    frame = dict(width=f"{across - 1:.1f}", height=f"{height - 1:g}", rx=8, fill="none", stroke=RULE)
    return [
        tag("g", tag("rect", x=0.5, y=0.5, **frame), *inner, transform=f"translate({i * (across + GAP):.1f} 0)")
        for i, (inner, _) in enumerate(cards)
    ], height


def _card(group: Answers, names: Sequence[str], across: float, label: float) -> tuple[list[Html], float]:
    """Picture, question and reference, then a line or two per system; and how high that is."""
    _, example = group[0]
    left, top = PAD + SHOWN + PAD, PAD + 14
    drawn = [_picture(example["image"])]
    lines = wrap(str(example.get("question", "")), 13, across - left - PAD, 3)
    drawn += [words(left, top + LINE * i, line, 13, fill=SOFT) for i, line in enumerate(lines)]
    top += LINE * len(lines)
    lines = wrap(str(_reference(example)), 13, across - left - PAD, 4 - len(lines))
    drawn += [words(left, top + LINE * i, line, 13, font_weight=600) for i, line in enumerate(lines)]
    y = max(top + LINE * len(lines), PAD + SHOWN + 22)
    for number, answer in group:
        right = _is_right(answer)
        tone, mark = (RIGHT, "✓") if right else (WRONG, "✗")
        drawn.append(tag("circle", cx=PAD + 4, cy=f"{y - 4:g}", r=4, fill=colour(number)))
        drawn.append(words(PAD + 14, y, wrap(names[number], 12, label, 1)[0], 12, fill=SOFT))
        drawn.append(words(PAD + 14 + label, y, mark, 12, fill=tone))
        start = PAD + 14 + label + 16
        for line in wrap(str(answer.get("prediction", "")), 13, across - start - PAD, 2) or ["(nothing)"]:
            drawn.append(words(start, y, line, 13, fill=tone))
            y += LINE
        y += 3
    return drawn, y - LINE + PAD


def _reference(example: Mapping[str, Any]) -> Any:
    return example.get("reference", example.get("answer", ""))


def _is_right(example: Mapping[str, Any]) -> bool:
    if "correct" in example:
        return bool(example["correct"])
    return str(example.get("prediction", "")).strip().lower() == str(_reference(example)).strip().lower()


def _picture(encoded: str) -> Html:
    """The picture inside the drawing, on white, no larger than it needs to be."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((KEPT, KEPT), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    file = io.BytesIO()
    white.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return tag("image", href=f"data:image/png;base64,{data}", x=PAD, y=PAD, width=SHOWN, height=SHOWN)
