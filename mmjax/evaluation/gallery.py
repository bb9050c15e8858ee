"""Pictures in the report, each with what was asked and what the model made of it."""

from __future__ import annotations

import base64
import binascii
import collections
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.evaluation.markup import Html, count, number, percent, section, spoken, tag

RIGHT, WRONG, CAPTIONS = 16, 8, 24  # pictures shown at most


def gallery(name: str, part: Mapping[str, Any]) -> Html:
    """The gallery of a benchmark: of questions, or of captions."""
    examples = [example for example in part["examples"] if isinstance(example, Mapping)]
    if not any("question" in example for example in examples):
        return _captions(name, part, examples)
    right = [e for e in examples if e.get("correct")]
    wrong = [e for e in examples if not e.get("correct")]
    note = "Chosen evenly over the kinds of question; how many are right or wrong here is no measure."
    if (accuracy := number(part.get("accuracy"))) is not None:
        note += f" Of all questions {percent(accuracy)} are answered right."
    groups = [
        tag("div", tag("h3", title), tag("div", *(_question(e) for e in balanced(group, most)), _class="cards"))
        for title, group, most in (("Answered right", right, RIGHT), ("Answered wrong", wrong, WRONG))
        if group
    ]
    return section(f"Held-out pictures: {spoken(name)}", note, *groups)


def _question(example: Mapping[str, Any]) -> Html:
    mark = tag("span", "✓ right" if example.get("correct") else "✗ wrong", _class="mark")
    asked = [tag("p", example.get("question"), _class="ask")]
    asked.append(tag("p", tag("b", example.get("prediction")), " ", mark))
    if not example.get("correct"):
        asked.append(tag("p", "answer: ", tag("b", example.get("answer")), _class="truth"))
    if "shuffled" in example:
        asked.append(tag("p", f"with another picture: {example['shuffled']}", _class="truth"))
    verdict = "right" if example.get("correct") else "wrong"
    return tag("article", _picture(example), tag("div", *asked), _class=f"card {verdict}", title=example.get("id"))


def _captions(name: str, part: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> Html:
    note = "Pictures held out from training, with what the model writes about them."
    if (exact := number(part.get("exact"))) is not None:
        of = f" of {count(part['count'])}" if number(part.get("count")) else ""
        note += f" Word for word the reference: {percent(exact)}{of}."
    cards = []
    for example in examples[:CAPTIONS]:
        given, wanted = (str(example.get(key, "")) for key in ("prediction", "reference"))
        mark = tag("span", " ✓ same", _class="mark") if given.lower() == wanted.lower() else None
        text = tag("div", tag("p", tag("b", given), mark), tag("p", f"reference: {wanted}", _class="truth"))
        cards.append(tag("article", _picture(example), text, _class="card", title=example.get("id")))
    return section(f"Held-out pictures: {spoken(name)}", note, tag("div", *cards, _class="cards"))


def balanced(examples: Iterable[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Some of the examples, taken in turn from each kind of question, a picture's second only after all firsts."""
    kinds: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for example in examples:
        kinds[str(example.get("kind") or str(example.get("id")).rpartition("/")[2])].append(example)
    if len(kinds) > most:  # the ids do not end in a kind
        kinds = {"": [example for group in kinds.values() for example in group]}
    turns = [example for turn in itertools.zip_longest(*kinds.values()) for example in turn if example is not None]
    seen: collections.Counter[Any] = collections.Counter()
    ranks = []
    for example in turns:
        ranks.append(seen[example.get("image")])
        seen[example.get("image")] += 1
    chosen = sorted(range(len(turns)), key=lambda i: (ranks[i], i))[:most]
    return [turns[i] for i in chosen]


def _picture(example: Mapping[str, Any]) -> Html:
    """The picture, inside the page: PNG, JPEG, GIF or WebP."""
    image = example.get("image")
    try:
        if isinstance(image, os.PathLike):
            image = Path(image).read_bytes()
        data = base64.b64decode(image, validate=True) if isinstance(image, str) else bytes(image)
    except (OSError, TypeError, binascii.Error):
        return tag("span", "no picture", _class="picture")
    kinds = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if data.startswith(start)), "png")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, alt=f"picture {example.get('id', '')}", _class="picture")
