"""A contact sheet: pictures, the reference, and what each system answers."""

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
    shared = _shared(systems)
    if not shared:
        return None
    names = [system.name for system in systems]
    label = min(LABEL, max(width(name, 12) for name in names) + 6)
    columns = 3 if label < 0.7 * LABEL else 2
    rows = max(1, PICTURES // len(shared) // columns)
    drawn, y = [], 0.0
    for name, answers in shared.items():
        drawn.append(words(0, y + 14, name.replace("_", " ").capitalize(), 14, font_weight=600))
        if without := [names[i] for i in range(len(names)) if i not in dict(answers[0])]:
            note = f"no examples of {', '.join(without)}"
            drawn.append(words(WIDTH, y + 14, note, 12, fill=SOFT, text_anchor="end"))
        y += 30
        by_first = {id(group[0][1]): group for group in answers}
        chosen = balanced([example for (_, example), *_ in answers], rows * columns)
        for begin in range(0, len(chosen), columns):
            row = [by_first[id(example)] for example in chosen[begin : begin + columns]]
            cards, height = _row(row, names, (WIDTH + GAP) / columns - GAP, label)
            drawn.append(tag("g", *cards, transform=f"translate(0 {y:g})"))
            y += height + GAP
        y += GAP
    return page(y - 2 * GAP, "Pictures with each system's answer", *drawn)


def _shared(systems: Sequence[System]) -> dict[str, list[Answers]]:
    """Benchmark -> the answers to each picture that all systems with examples of that benchmark have."""
    kept = [system.runs[0].examples() for system in systems]
    shared = {}
    for name in dict.fromkeys(name for examples in kept for name in examples):
        by_id = {}
        for i, examples in enumerate(kept):
            if found := {
                e["id"]: e for e in examples.get(name, ()) if isinstance(e.get("id"), str | int) and "image" in e
            }:
                by_id[i] = found
        ids = [key for key in next(iter(by_id.values()), {}) if all(key in found for found in by_id.values())]
        if ids:
            shared[name] = [[(i, found[key]) for i, found in by_id.items()] for key in ids]
    return shared


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
    wide = across > 4.5 * SHOWN  # then the answers stand beside the picture too
    indent = left if wide else PAD
    y = top + LINE * len(lines) + 6 if wide else max(top + LINE * len(lines), PAD + SHOWN + 22)
    for number, answer in group:
        right = _is_right(answer)
        tone, mark = (RIGHT, "✓") if right else (WRONG, "✗")
        drawn.append(tag("circle", cx=indent + 4, cy=f"{y - 4:g}", r=4, fill=colour(number)))
        drawn.append(words(indent + 14, y, wrap(names[number], 12, label, 1)[0], 12, fill=SOFT))
        drawn.append(words(indent + 14 + label, y, mark, 12, fill=tone))
        start = indent + 14 + label + 16
        for line in wrap(str(answer.get("prediction", "")), 13, across - start - PAD, 2) or ["(nothing)"]:
            drawn.append(words(start, y, line, 13, fill=tone))
            y += LINE
        y += 3
    return drawn, max(y - LINE, PAD + SHOWN) + PAD


def _reference(example: Mapping[str, Any]) -> Any:
    return example.get("reference", example.get("answer", ""))


def _is_right(example: Mapping[str, Any]) -> bool:
    if "correct" in example:
        return bool(example["correct"])
    return str(example.get("prediction", "")).strip().lower() == str(_reference(example)).strip().lower()


def _picture(encoded: str) -> Html:
    """The picture inside the drawing, on white, no larger than it needs to be; a grey place if it is none."""
    frame = dict(x=PAD, y=PAD, width=SHOWN, height=SHOWN)
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
            image = opened.convert("RGBA")
    except (OSError, ValueError, TypeError):
        return tag("rect", **frame, fill=RULE)
    image.thumbnail((KEPT, KEPT), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    file = io.BytesIO()
    white.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return tag("image", href=f"data:image/png;base64,{data}", **frame)
