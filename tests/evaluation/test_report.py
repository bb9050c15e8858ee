"""The report: well formed, self-contained, safe with any text, and true to the numbers it is given."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mmjax.evaluation import axes
from mmjax.evaluation.charts import Series, chart
from mmjax.evaluation.markup import VOID, Html, duration, short, tag
from mmjax.evaluation.report import write_report

NASTY = """<script>alert("1")</script>' onerror='x' & </style>"""
CONFIG = {
    "seed": 0,
    "stages": ["pretrain", "sft"],
    "pretrain": {"steps": 40, "batch": 8, "losses": {"next_token": {"weight": 1.0}}, "trainable": ["."]},
    "sft": {"steps": 100, "batch": 4, "losses": {"next_token": {"weight": 1.0}}, "trainable": ["/lora_"]},
    "model": {
        "encoders": {"image": {"type": "encoders.vit.ViT", "variant": "vit", "depth": 3, "patch": 8}},
        "projectors": {"image": {"type": "projectors.resampler.Perceiver", "latents": 16}},
        "backbone": {"type": "backbones.decoder.Decoder", "width": 128, "variant": None},
        "fusion": "xattn",
    },
}


def png(colour, size=4):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def question(number, kind="shape", correct=True, **changes):
    example = dict(id=f"test/{number}/0/{kind}", image=png((number, 0, 0)), question=f"what is {number}?")
    return example | dict(answer="circle", prediction="circle" if correct else "square", correct=correct) | changes


def scores(*shares, count=10):
    return dict(zip(("accuracy", "question_only", "shuffled"), shares, strict=True)) | dict(count=count)


def results():
    return {
        "easy_vqa": scores(0.934, 0.67, 0.612, count=9673)
        | {"kinds": {"shape": scores(0.981, 0.341, 0.338), "absence": scores(0.9025, 0.731, 0.651)}}
        | {"examples": [question(1), question(2, correct=False), question(3, kind="absence")]},
        "captions": {
            "exact": 0.021,
            "count": 188,
            "examples": [
                dict(id="1F600", image=png("red"), reference="grinning face", prediction="Grinning face")
            ],
        },
        "seconds": {"train": 564.2, "evaluate": 41.7},
        "parameters": {"total": 1488640, "trained": {"pretrain": 1488640, "sft": 20480}},
    }


def write_metrics(workdir, stage, losses, **more):
    (workdir / stage).mkdir()
    with (workdir / stage / "metrics.jsonl").open("w") as file:
        for i, loss in enumerate(losses):
            line = dict(step=10 * i + 1, time=0.0, loss=loss, accuracy=0.5, learning_rate=1e-3, loader_wait=0.01)
            file.write(json.dumps(line | dict(tokens_per_second=900.0, slots_per_second=1000.0) | more) + "\n")


class Page(html.parser.HTMLParser):
    """A page read strictly: every tag closed in order; its tags and its text as a reader sees it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.source = [], [], [], text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {name}"
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, name, of_class=""):
        return [a for n, a in self.tags if n == name and of_class in ["", *a.get("class", "").split()]]

    def read_outs(self):
        return [json.loads(a["data-read-out"]) for a in self.all("div", "plot")]


def report(workdir, config=CONFIG, found=None, title="a run"):
    path = write_report(workdir, title, config, results() if found is None else found)
    assert path == workdir / "report.html"
    return Page(path.read_text("utf-8"))


def test_the_numbers_shown_are_the_results(tmp_path):
    text = report(tmp_path).text.replace("\u202f", " ")
    row = "all 9,673 93.4 % 67.0 % 61.2 %"
    assert "shape 10 98.1 % 34.1 % 33.8 %" in text and "absence 10 90.2 % 73.1 % 65.1 %" in text and row in text
    assert "+26.4 points against the question alone (67.0 %)" in text
    assert "Word for word the reference: 2.1 % of 188." in text
    assert "Training 9 min 24 s Evaluation 42 s" in text
    assert "Parameters 1,488,640 Trained in pretrain all Trained in sft 20,480" in text


def test_bars_are_as_long_as_their_numbers(tmp_path):
    bars = [a["style"] for a in report(tmp_path).all("i") if "style" in a]
    wanted = [98.1, 34.1, 33.8, 90.25, 73.1, 65.1, 93.4, 67.0, 61.2]
    assert bars == [f"width:{share:.2f}%" for share in wanted]


def test_the_composition_is_read_off_the_config(tmp_path):
    text = report(tmp_path).text
    assert "Encoder ViT 3 layers, patch 8 Projector Perceiver 16 latents" in text
    assert "Backbone · xattn Decoder width 128" in text


def test_no_text_can_become_markup(tmp_path):
    names = [NASTY, NASTY.replace("/", "")]
    (tmp_path / "quarantine.jsonl").write_text(json.dumps(dict(source=NASTY, id=NASTY, reason=NASTY)) + "\n")
    write_metrics(tmp_path, names[1], [2.0, 1.0], **{f"valid_{NASTY}": 1.0})
    config = {"stages": names, NASTY: {"data": {"sources": {NASTY: {}}}}, "model": {"fusion": NASTY}}
    config["model"]["encoders"] = {NASTY: {"type": NASTY, "variant": NASTY}, "b": {}}
    bad = dict.fromkeys(("id", "image", "question", "answer", "prediction"), NASTY)
    captions = {"examples": [dict.fromkeys(("id", "image", "reference", "prediction"), NASTY)]}
    found = {NASTY: {"accuracy": 0.5, "kinds": {NASTY: {"accuracy": 1}}, "examples": [bad]}, "captions": captions}
    page = report(tmp_path, config, found | {"other": {NASTY: 1.5}}, title=NASTY)
    assert [attributes for name, attributes in page.tags if name == "script"] == [{}]  # our own and no other
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert page.text.count(re.sub(r"\s+", " ", NASTY)) >= 12
    assert page.source.count("</style>") == 1


def test_nothing_is_loaded_and_no_other_script_runs(tmp_path):
    write_metrics(tmp_path, "sft", [2.0, 1.0])
    page = report(tmp_path)
    sources = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "poster", "action") if key in a]
    assert len(sources) == 5 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|https?:", page.source)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy


def test_pictures_are_in_the_page_to_the_byte(tmp_path):
    (tmp_path / "a.png").write_bytes(png("blue"))
    examples = [
        question(1, image=png("red")),
        question(2, image=base64.b64encode(png("green")).decode()),
        question(3, image=tmp_path / "a.png"),
        question(4, image=b"\xff\xd8 a JPEG"),
        question(5, image=None),
        question(6, image=tmp_path / "missing.png"),
    ]
    page = report(tmp_path, found={"vqa": {"examples": examples}})
    pictures = [a["src"].partition(";base64,") for a in page.all("img")]
    kinds = {base64.b64decode(data): kind for kind, _, data in pictures}
    assert kinds == {png(c): "data:image/png" for c in ("red", "green", "blue")} | {
        b"\xff\xd8 a JPEG": "data:image/jpeg"
    }
    assert page.text.count("no picture") == 2


def test_right_and_wrong_are_told_in_words(tmp_path):
    page = report(tmp_path)
    assert len(page.all("article", "right")) == 2 and len(page.all("article", "wrong")) == 1
    assert "what is 2? square ✗ wrong answer: circle" in page.text
    assert page.text.count("✓ right") == 2 and "Grinning face ✓ same reference: grinning face" in page.text


def test_a_gallery_takes_from_all_kinds_and_new_pictures_first(tmp_path):
    many = [question(i // 5, kind="shape", id=f"test/{i}/shape") for i in range(200)]
    examples = [*many, *(question(200 + i, kind="absence") for i in range(3)), question(250, correct=False)]
    page = report(tmp_path, found={"vqa": {"accuracy": 0.9, "examples": examples}})
    right = page.all("article", "right")
    assert len(right) == 16 and len(page.all("article", "wrong")) == 1
    assert sum(a["title"].endswith("absence") for a in right) == 3
    assert len({a["src"] for a in page.all("img")}) == 17


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"easy_vqa": {}, "captions": {}, "seconds": {}},
        {"easy_vqa": {"accuracy": None, "kinds": None, "examples": []}, "seconds": None},
        {"easy_vqa": {"accuracy": 0.5}},
        {"easy_vqa": {"accuracy": 0.5, "kinds": {"shape": {}}, "examples": [{}]}, "captions": {"examples": [{}]}},
    ],
)
def test_missing_parts_are_left_out(tmp_path, found):
    for config in ({}, {"stages": ["sft"]}, CONFIG):
        page = report(tmp_path, config, found)
        assert "a run" in page.text and "None" not in page.text.partition("As resolved")[0]
        assert ("93.4" not in page.text) and page.text.count("No metrics:") == len(config.get("stages", ()))


def test_figures_of_unknown_benchmarks_are_listed(tmp_path):
    found = {"pope": {"f1": 0.812, "split": {"hard": np.float32(0.5)}, "note": "x", "ok": True}, "perplexity": 12}
    text = report(tmp_path, {}, found).text
    assert "Other figures" in text and "pope / f1 0.812" in text and "pope / split / hard 0.5" in text
    assert "perplexity 12" in text and "pope / note" not in text and "pope / ok" not in text


def test_curves_hold_all_values_and_the_planned_steps(tmp_path):
    losses = [7.25, 3.5, None, 0.125]
    write_metrics(tmp_path, "sft", losses)
    with (tmp_path / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "valid_next_token": 0.25}\n{"step": 41, "lo')
    page = report(tmp_path)
    linear, log = page.read_outs()[:2]
    assert linear == log and linear["end"] == 100
    assert linear["series"][0] == ["training", [[1, 7.25], [11, 3.5], [21, None], [31, 0.125]]]
    assert linear["series"][1] == ["held-out next_token", [[31, 0.25]]]
    last = [[label, points[-1][1]] for plot in page.read_outs()[2:] for label, points in plot["series"]]
    assert last == [["", 50.0], ["", 1e-3], ["tokens/s", 900.0], ["slots/s", 1000.0], ["", 1.0]]
    assert [plot["unit"] for plot in page.read_outs()] == ["", "", "\u202f%", "", "", "\u202f%"]
    assert "31 of 100 steps · 4 rows each · trained: /lora_" in page.text
    assert page.text.count("No metrics: pretrain/metrics.jsonl") == 1
    assert page.all("svg")[0]["aria-label"].startswith("Loss: training from 0.125 to 7.25, at last 0.125")


def ends(path):
    """The points of an SVG path as [x, height] in percent."""
    return [[float(x), 100 - float(y)] for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_lines_stand_where_their_axis_says():
    page = Page(chart("Rate", [Series("", "exact", [(0, 0.0), (50, 3.0), (100, 4.0)])], 100))
    ticks = [float(a["style"].removeprefix("bottom:").rstrip("%")) for a in page.all("span", "y")]
    assert ticks == [0, 25, 50, 75, 100] and "0 1 2 3 4 step 0" in page.text
    (line,) = page.all("path", "line")
    assert ends(line["d"]) == [[0, 0], [50, 75], [100, 100]]


def test_a_logarithmic_axis_is_offered_and_chosen_for_wide_ranges():
    def figure(*values):
        points = list(enumerate(values))
        return Page(chart("Loss", [Series("", "main", points)], len(values), log=True))

    assert "checked" in figure(100.0, 1.0, 0.01).all("input")[0]
    assert "checked" not in figure(2.0, 1.0).all("input")[0]
    assert figure(1.0, 0.0).all("input") == []  # zero has no logarithm
    heights = [y for _, y in ends(figure(100.0, 1.0, 0.01).all("path", "line")[1]["d"])]
    assert heights[0] > heights[1] > heights[2] >= 0 and heights[0] <= 100
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.02)


def test_long_runs_are_thinned_and_keep_their_extremes():
    values = np.random.default_rng(0).normal(5, 1, 50_000)
    values[12_345], values[33_333] = 50.0, -50.0
    page = Page(chart("Loss", [Series("", "main", [(i, float(v)) for i, v in enumerate(values)])], 50_000))
    ((_, points),) = page.read_outs()[0]["series"]
    assert len(points) <= axes.POINTS and [12_345, 50.0] in points and [33_333, -50.0] in points
    raw, smooth = (ends(a["d"]) for a in page.all("path", "line"))
    assert max(y for _, y in raw) == 100 and min(y for _, y in raw) == 0
    assert np.std([y for _, y in smooth]) < 0.1 * np.std([y for _, y in raw])


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0, -1.0], [1e-9, 1e9], [None, 2.0, None, 3.0], [1e-30]])
def test_any_finite_values_can_be_drawn(values):
    page = Page(chart("Loss", [Series("", "main", list(enumerate(values)))], 4, log=True))
    points = [y for a in page.all("path", "line") for _, y in ends(a["d"])]
    assert points and all(-0.01 <= y <= 100.01 for y in points)


def test_nothing_recorded_is_said():
    assert "not recorded" in Page(chart("Loss", [Series("", "main", [(1, None)])], 4)).text


def test_the_config_can_be_read_back(tmp_path):
    config = CONFIG | {"text": 'a "quoted": <b>', "long": [["kernel$", True]] * 20, "empty": {}, "none": None}
    page = report(tmp_path, config)
    inside = page.source.partition("<pre>")[2].partition("</pre>")[0]
    text = html.unescape(re.sub(r"</?b>", "", inside))
    assert json.loads(text) == config
    assert max(map(len, text.splitlines())) < 115


def test_refused_records_are_counted_once_by_source_and_reason(tmp_path):
    lines = [dict(source="mine", id=f"r{i % 3}", reason="truncated") for i in range(6)]
    lines += [
        dict(source="mine", id="r9", reason="no picture"),
        dict(source="theirs", id="r0", reason="truncated"),
    ]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(tmp_path).text
    assert "5 in all. mine truncated 3 mine no picture 1 theirs truncated 1" in text


def test_refused_records_are_told_apart_by_stage_and_split(tmp_path):
    splits = [("sft", "train"), ("sft", "valid"), ("pretrain", "train")]
    lines = [dict(stage=a, split=b, source="mine", id="r0", reason="truncated") for a, b in splits]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(tmp_path).text
    assert "3 in all. sft train mine truncated 1 sft valid mine truncated 1 pretrain train mine" in text


def test_an_empty_quarantine_is_said(tmp_path):
    assert "Refused records" not in report(tmp_path).text
    (tmp_path / "quarantine.jsonl").touch()
    assert "Refused records None." in report(tmp_path).text


def test_the_page_is_replaced_as_a_whole(tmp_path):
    report(tmp_path)
    report(tmp_path, title="a second")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "a second" in (tmp_path / "report.html").read_text()


def test_tags_escape_what_is_not_html():
    inner = tag("b", "x < y")
    assert tag("p", inner, " & ", None, 3, _class='a"b', title=None) == Html(
        '<p class="a&quot;b"><b>x &lt; y</b> &amp; 3</p>'
    )


def test_numbers_are_written_briefly():
    numbers = [0, 0.0213, 3.9411, 1076, 12_400, 1_488_640, 2e-5, -0.5]
    assert [short(n) for n in numbers] == ["0", "0.0213", "3.941", "1,076", "12.4k", "1.489M", "2e−5", "−0.5"]
    assert [duration(s) for s in (4.25, 42, 60, 7500, None)] == ["4.2 s", "42 s", "1 min 0 s", "2 h 5 min", None]
