"""A run on one page: `report.html` opens from a disk, needs no network, and prints.

Style (report.css), read-out (report.js), charts (SVG) and pictures (data: URIs) are all inside. A chart's lines
stretch to any width; its words are HTML beside them, which do not. Whatever the text, `tag` escapes it.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from mmjax import tree
from mmjax.evaluation.charts import Series, chart
from mmjax.evaluation.gallery import gallery
from mmjax.evaluation.markup import Html, count, duration, number, percent, section, short, spoken, tag
from mmjax.evaluation.progress import MEASURED, stage_metrics
from mmjax.files import json_lines, write_text

COLUMNS = {"accuracy": "This model", "question_only": "Question only", "shuffled": "Shuffled pictures"}
REASONS = 20  # for which records were refused, at most
PERCENT = "\u202f%"
DETAILS = {  # what of a part's config is worth a word
    "variant": "{}", "depth": "{} layers", "width": "width {}", "patch": "patch {}", "size": "{} px",
    "latents": "{} latents", "reduce": "{}", "factor": "factor {}",
}  # fmt: skip


def write_report(
    workdir: str | os.PathLike[str], title: str, config: Mapping[str, Any], results: Mapping[str, Any]
) -> Path:
    """Writes `report.html` into the workdir, whole or not at all. Whatever is missing is left out or said.

    Args:
      workdir: holds `STAGE/metrics.jsonl` of each stage and `quarantine.jsonl`.
      config: the resolved config, as in config.json.
      results: name of a benchmark -> its figures. With `accuracy` it gets a table, with columns `question_only`
        and `shuffled` and rows `kinds`: {kind: {accuracy, question_only, shuffled, count}}, all shares 0..1.
        `examples` become pictures: {id, image, question, answer, prediction, correct} or, for captions, {id,
        image, reference, prediction}; an image is encoded bytes, the same in base64, or a path. All other
        figures are listed. Two names are no benchmarks: `seconds` {train, evaluate} and `parameters` {total,
        trained: {stage: count}}.

    Returns:
      The page's path.
    """
    workdir = Path(workdir)
    config = json.loads(json.dumps(dict(config), default=str))
    files = resources.files(__package__)
    style, script = (Html(files.joinpath(f"report.{kind}").read_text("utf-8")) for kind in ("css", "js"))
    # The page may load nothing, and run no script but this one, whatever a file name or an answer holds.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", style),
    )
    benchmarks = {name: part for name, part in results.items() if isinstance(part, Mapping)}
    body = tag(
        "main",
        _header(title, config, results),
        *(_scores(name, part) for name, part in benchmarks.items() if number(part.get("accuracy")) is not None),
        _other_figures(results),
        _training(workdir, config),
        *(gallery(name, part) for name, part in benchmarks.items() if part.get("examples")),
        _quarantine(workdir / "quarantine.jsonl"),
        _config(config),
    )
    page = tag("html", head, tag("body", body, tag("script", script)), lang="en")
    path = workdir / "report.html"
    write_text(path, f"<!doctype html>\n{page}\n")
    return path


# The head of the page, and its figures.


def _header(title: str, config: Mapping[str, Any], results: Mapping[str, Any]) -> Html:
    now, devices = datetime.now(), jax.devices()
    seconds, parameters = results.get("seconds") or {}, results.get("parameters") or {}
    total, trained = parameters.get("total"), parameters.get("trained") or {}
    cores = f", {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
    facts = {
        "Parameters": count(total),
        **{f"Trained in {stage}": "all" if n == total else count(n) for stage, n in trained.items()},
        "Training": duration(seconds.get("train")),
        "Evaluation": duration(seconds.get("evaluate")),
        "Hardware": f"{len(devices)} × {devices[0].device_kind}{cores}",
    }
    return tag(
        "header",
        tag("p", f"mmjax · {now.day} {now:%B %Y}, {now:%H:%M}", _class="over"),
        tag("h1", title),
        _composition(config.get("model") or {}),
        tag(
            "div",
            _headline(results),
            tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items() if v), _class="facts"),
            _class="hero",
        ),
    )


def _composition(model: Mapping[str, Any]) -> Html | None:
    """The parts of the model as boxes in a row: encoders, projectors, backbone."""
    parts = {"Encoder": model.get("encoders"), "Projector": model.get("projectors")}
    parts["Backbone" + (f" · {model['fusion']}" if model.get("fusion") else "")] = {"": model.get("backbone")}
    boxes = []
    for role, specs in parts.items():
        specs = {name: spec for name, spec in (specs or {}).items() if isinstance(spec, Mapping)}
        lines = []
        for name, spec in specs.items():
            type_name = str(spec.get("type", "?")).rpartition(".")[2]
            words = [form.format(spec[key]) for key, form in DETAILS.items() if spec.get(key) is not None]
            words = [word for word in words if word != type_name.lower()]
            lines.append(tag("b", type_name))
            lines.append(tag("span", ", ".join([name] * (len(specs) > 1) + words).replace("_", " ")))
        if lines:
            boxes.append(tag("li", tag("small", role), *lines))
    return tag("ol", *boxes, _class="flow") if boxes else None


def _headline(results: Mapping[str, Any]) -> Html | None:
    """The first benchmark's accuracy, large, and what of it the question alone would give."""
    for name, part in results.items():
        if isinstance(part, Mapping) and (accuracy := number(part.get("accuracy"))) is not None:
            text = [tag("p", percent(accuracy), _class="figure"), tag("p", f"accuracy on {spoken(name)}")]
            if (blind := number(part.get("question_only"))) is not None:
                gain = f"{100 * (accuracy - blind):+.1f} points".replace("-", "−")
                text.append(tag("p", tag("b", gain), f" against the question alone ({percent(blind)})"))
            return tag("div", *text, _class="headline")
    return None


def _scores(name: str, part: Mapping[str, Any]) -> Html:
    """Accuracy by kind of question, with a bar in each cell."""
    rows = {**(part.get("kinds") or {}), "all": part}
    columns = [c for c in COLUMNS if any(number(row.get(c)) is not None for row in rows.values())]
    heads = [tag("th", "Questions", scope="col"), *(tag("th", COLUMNS[c], scope="col") for c in columns)]
    lines = []
    for kind, row in rows.items():
        cells = [tag("td", count(row.get("count")), _class="n")]
        for column in columns:
            value = number(row.get(column))
            bar = None if value is None else tag("i", style=f"width:{min(max(100 * value, 0), 100):.2f}%")
            track = bar and tag("span", bar, _class="bar")
            text = tag("b", "–" if value is None else percent(value))
            cells.append(tag("td", text, track, _class=f"score {column}"))
        lines.append(tag("tr", tag("th", kind, scope="row"), *cells, _class="all" if row is part else None))
    note = "Shares of exact answers."
    if "question_only" in columns:
        note += " Question only: the most frequent answer to that question, no picture seen."
    if "shuffled" in columns:
        note += " Shuffled pictures: this model, shown another question's picture."
    table = tag("table", tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *lines), _class="scores")
    return section(f"Accuracy on {spoken(name)}", note, table)


def _other_figures(results: Mapping[str, Any]) -> Html | None:
    """Every number of `results` that no other section shows."""
    rest = {}
    for name, part in results.items():
        if isinstance(part, Mapping) and name not in ("seconds", "parameters"):
            shown = {"examples", "refused", MEASURED}
            if number(part.get("accuracy")) is not None:
                shown |= {*COLUMNS, "kinds", "count"}
            elif part.get("examples"):
                shown |= {"exact", "count"}
            rest[name] = {key: value for key, value in part.items() if key not in shown}
        elif not isinstance(part, Mapping):
            rest[name] = part
    numbered = {path: number(value) for path, value in tree.flatten(rest).items()}
    rows = [
        tag("tr", tag("th", path.replace("/", " / "), scope="row"), tag("td", short(value), _class="n"))
        for path, value in numbered.items()
        if value is not None
    ]
    return section("Other figures", None, tag("table", *rows, _class="plain")) if rows else None


# Training: six charts a stage.


def _training(workdir: Path, config: Mapping[str, Any]) -> Html | None:
    stages = [_stage(workdir, name, config.get(name) or {}) for name in config.get("stages") or ()]
    note = "Thin lines: as logged. Bold lines: a moving mean. The first rate of a run holds the compilation."
    return section("Training", note, *stages) if stages else None


def _stage(workdir: Path, name: str, spec: Mapping[str, Any]) -> Html:
    path = workdir / name / "metrics.jsonl"
    lines = stage_metrics(workdir, name)
    if not lines:
        note = f"No metrics: {name}/{path.name} is missing or empty."
        return tag("div", tag("h3", name), tag("p", note, _class="note"))
    end = max(1, number(spec.get("steps")) or 0, *(line["step"] for line in lines))
    return tag(
        "div",
        tag("h3", name),
        tag("p", " · ".join(_stage_facts(spec, lines)), _class="note"),
        tag("div", *_stage_charts(list(spec.get("losses") or ()), lines, end), _class="charts"),
    )


def _stage_facts(spec: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the stage's config and course is worth a word."""
    latest = {key: value for line in lines for key, value in line.items() if number(value) is not None}
    planned = count(spec.get("steps"))
    steps = f"{latest['step']:,}" + (f" of {planned}" if planned else "") + " steps"
    trained = "everything" if spec.get("trainable") == ["."] else ", ".join(spec.get("trainable") or ())
    facts = {
        steps: True,
        f"{spec.get('batch')} rows each": "batch" in spec,
        f"{duration(latest.get('seconds'))}": "seconds" in latest,
        "data: " + ", ".join((spec.get("data") or {}).get("sources") or ()): "data" in spec,
        f"trained: {trained}": trained,
        f"{count(latest.get('skipped'))} steps skipped": latest.get("skipped"),
        f"{count(latest.get('compilations'))} compilations after warm-up": "compilations" in latest,
    }
    return [fact for fact, known in facts.items() if known]


def _stage_charts(losses: Sequence[str], lines: Sequence[Mapping[str, Any]], end: float) -> list[Html]:
    def series(key: str, label: str = "", kind: str = "main", factor: float = 1) -> Series:
        found = [(line["step"], number(line[key])) for line in lines if key in line]
        return Series(label, kind, [(step, None if y is None else factor * y) for step, y in found])

    held_out = sorted({key for line in lines for key in line if key.startswith("valid_")})
    loss = [
        series("loss", "training"),
        *(series(key, key, "second") for key in losses if len(losses) > 1),
        *(series(key, key.replace("valid_", "held-out ", 1), "held") for key in held_out),
    ]
    rates = [series("tokens_per_second", "tokens/s"), series("slots_per_second", "slots/s", "second")]
    return [
        chart("Loss", loss, end, log=True),
        chart("Token accuracy", [series("accuracy", factor=100)], end, PERCENT),
        chart("Learning rate", [series("learning_rate", kind="exact")], end),
        chart("Throughput", rates, end),
        chart("Waiting for the loader", [series("loader_wait", factor=100)], end, PERCENT),
        chart("Gradient norm", [series("grad_norm")], end),
    ]


# What the run was made of.


def _quarantine(path: Path) -> Html | None:
    """How many records were refused, by source and reason."""
    if not path.exists():
        return None
    refused = {(_whose(line), str(line.get("id"))): line.get("reason") for line in json_lines(path)}
    if not refused:
        return section("Refused records", "None.")
    counts = collections.Counter((source, reason) for (source, _), reason in refused.items()).most_common()
    rows = [
        tag("tr", tag("th", source, scope="row"), tag("td", reason), tag("td", f"{n:,}", _class="n"))
        for (source, reason), n in counts[:REASONS]
    ]
    note = f"{len(refused):,} in all" + (f"; the {REASONS} most frequent reasons." if counts[REASONS:] else ".")
    return section("Refused records", note, tag("table", *rows, _class="plain"))


def _whose(line: Mapping[str, Any]) -> str:
    """Stage, split and source of a refused record."""
    return " ".join(str(line[key]) for key in ("stage", "split", "source") if line.get(key))


def _config(config: Mapping[str, Any]) -> Html:
    keyed = re.sub(r"(&quot;[^&\n]*&quot;)(?=: )", r"<b>\1</b>", escape(_layout(config)))
    return section("Config", None, tag("details", tag("summary", "As resolved"), tag("pre", Html(keyed))))


def _layout(value: Any, indent: int = 0) -> str:
    """JSON in which what fits into a line stands in one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or len(flat) + indent <= 88:
        return flat
    margin = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{json.dumps(k, ensure_ascii=False)}: {_layout(v, indent + 2)}" for k, v in value.items()]
    else:
        inner = [_layout(v, indent + 2) for v in value]
    first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return f"{first}\n{margin}" + f",\n{margin}".join(inner) + f"\n{' ' * indent}{last}"
