"""`mmjax compare`: the figures of several workdirs in tables, and drawings of their curves and pictures."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny_run import config, mmjax, write_data

from mmjax.evaluation.compare import BEGIN, END, compare, compare_into
from mmjax.evaluation.run import evaluate
from mmjax.evaluation.runs import read_systems
from mmjax.evaluation.sheet import contact_sheet
from mmjax.evaluation.svg import RIGHT, WRONG, width, wrap
from mmjax.training.stages import train

SVG = "{http://www.w3.org/2000/svg}"
SHARES = (0.5, 0.6, 0.65)  # of three seeds
LOSSES = {"next_token": {"type": "objectives.language.next_token", "weight": 1.0}}


def png(colour="red", size=8):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_run(workdir, results, seed=0, depth=1, examples=None, losses=(), data_dir="data", **changes):
    """A workdir as `mmjax evaluate` leaves it; `changes` are of its config."""
    (workdir / "sft").mkdir(parents=True)
    raw = dict(seed=seed, data_dir=data_dir, model=dict(depth=depth), stages=["sft"], sft=dict(losses=LOSSES))
    raw |= dict(tokenizer=dict(path=f"{data_dir}/tokenizer.model"), evaluation=None, load=()) | changes
    parameters = dict(total=1234567, trained=dict(sft=20480))
    costs = dict(parameters=parameters, seconds=dict(train=600.4 + seed, evaluate=9))
    (workdir / "config.json").write_text(json.dumps(raw))
    (workdir / "eval.json").write_text(json.dumps(results | costs))
    if examples is not None:
        (workdir / "examples.json").write_text(json.dumps(examples))
    lines = [json.dumps(dict(step=10 * i, loss=loss)) + "\n" for i, loss in enumerate(losses, 1)]
    (workdir / "sft" / "metrics.jsonl").write_text("".join(lines))
    return workdir


def question(i, prediction, answer="circle", **changes):
    example = dict(id=f"test/{i}", image=png(), question="what is it?", answer=answer, prediction=prediction)
    return example | dict(correct=prediction == answer) | changes


def kinds(share):
    return dict(shape=dict(accuracy=share, count=7))


@pytest.fixture
def runs(tmp_path):
    """Three seeds of one system, one of another: which has no perplexity."""
    found = [
        write_run(
            tmp_path / f"smol-seed{seed}",
            dict(
                naming=dict(accuracy=share, chance=0.25, count=188),
                easy_vqa=dict(accuracy=share, chance=0.25, count=9673, kinds=kinds(share)),
                perplexity=dict(perplexity=30.0 + seed, tokens=8128),
            ),
            seed=seed,
            losses=10 / np.arange(1, 41) + seed / 10,
            examples=dict(easy_vqa=[question(1, "circle"), question(2, "square <b>\0"), question(3, "x")]),
        )
        for seed, share in enumerate(SHARES)
    ]
    other = dict(
        naming=dict(accuracy=0.301, chance=0.25, count=188),
        easy_vqa=dict(accuracy=0.99, chance=0.25, count=9673, kinds=kinds(1.0)),
    )
    examples = dict(easy_vqa=[question(2, "circle"), question(1, "triangle"), question(9, "only here")])
    found.append(write_run(tmp_path / "x|attn", other, depth=2, examples=examples, losses=[3.0, 2.0]))
    return found


GOLDEN = r"""
Runs: smol 3 (seeds 0, 1, 2), x\|attn 1 (seed 0).
Of several: mean ± sample standard deviation, one figure where all are equal.

| benchmark | system | accuracy, % | chance, % |
| --- | --- | ---: | ---: |
| naming | smol | 58.3 ± 7.6 | 25.0 |
| naming | x\|attn | 30.1 | 25.0 |
| easy vqa | smol | 58.3 ± 7.6 | 25.0 |
| easy vqa | x\|attn | 99.0 | 25.0 |

count: naming 188, easy vqa 9,673.

| easy vqa | system | accuracy, % |
| --- | --- | ---: |
| shape | smol | 58.3 ± 7.6 |
| shape | x\|attn | 100.0 |

count: 7.

| benchmark | system | perplexity |
| --- | --- | ---: |
| perplexity | smol | 31.0 ± 1.0 |

tokens: 8,128.

| system | training, s | evaluation, s | parameters | trained in sft |
| --- | ---: | ---: | ---: | ---: |
| smol | 601 ± 1 | 9 | 1,234,567 | 20,480 |
| x\|attn | 600 | 9 | 1,234,567 | 20,480 |
""".strip()


def test_the_tables(runs):
    assert compare(runs) == GOLDEN
    assert f"{100 * np.mean(SHARES):.1f} ± {100 * np.std(SHARES, ddof=1):.1f}" in GOLDEN


def test_one_run_alone_has_no_deviation(runs):
    text = compare(runs[:1])
    assert "±" not in text and text.startswith("Runs: smol-seed0 1 (seed 0).\n\n")
    assert "| naming | smol-seed0 | 50.0 | 25.0 |" in text


def test_figures_of_other_kinds(tmp_path):
    """Counts that differ have a column; a seed whose figure is no number is left out."""
    found = [dict(x=dict(count=10, bleu=27.25)), dict(x=dict(count=12, bleu=float("nan"))), dict(y=dict(loss=0.5))]
    runs = [write_run(tmp_path / f"a-{i}", results, seed=i) for i, results in enumerate(found)]
    text = compare(runs)
    assert (
        "| benchmark | system | count | bleu |" in text and "| x | a | 11 ± 1 (2 of 3) | 27.25 (1 of 3) |" in text
    )
    assert "| y | a | 0.5000 (1 of 3) |" in text


@pytest.mark.parametrize(
    "names, systems",
    [
        (["smol-frozen-0", "smol-frozen-1"], ["smol-frozen"]),
        (["smol-frozen-seed0", "smol-frozen_seed_1"], ["smol-frozen"]),
        (["llama-2-10", "llama-2-11"], ["llama-2"]),
        (["there/0", "there/1"], ["there"]),
        (["a/quick", "b/quick-0", "b/quick-1"], ["a/quick", "b/quick"]),
    ],
)
def test_names(tmp_path, names, systems):
    """Of one system wherever its data and weights lie; what is in the folder `a` is of another."""
    runs = []
    for i, name in enumerate(names):
        elsewhere = dict(seed=i, data_dir=f"d{i}", load=[["", f"hf:{i}/m"]])
        runs.append(write_run(tmp_path / name, {}, depth=name.startswith("a/"), **elsewhere))
    assert [system.name for system in read_systems(runs)] == systems


def test_what_is_loaded_tells_systems_apart(tmp_path):
    runs = [write_run(tmp_path / name, {}, load=[["backbone", f"hf:m/{name}"]]) for name in ("base", "instruct")]
    assert [system.name for system in read_systems(runs)] == ["base", "instruct"]


def test_other_options_of_a_benchmark_are_told(tmp_path):
    options = dict(type="x", test="corpus:x/test", stage="sft", examples=3)
    runs = [
        write_run(tmp_path / f"a-{i}", dict(x_y=dict(f1=0.5)), seed=i, evaluation=dict(x_y=options | more))
        for i, more in enumerate((dict(limit=0), dict(limit=9, examples=1)))
    ]
    assert "\n\nNot asked alike in all runs: x y (limit).\n\n" in compare(runs)
    assert "Not asked alike" not in compare(runs[:1])


def test_errors_name_the_remedy(tmp_path, runs):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config.json: no run there; `mmjax train"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="given twice"):
        compare([runs[0], runs[1], runs[0]])
    (runs[0] / "eval.json").write_text("{")
    with pytest.raises(ValueError, match=r"eval.json: damaged .*mmjax evaluate --workdir"):
        compare(runs)
    (runs[0] / "eval.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not evaluated yet; `mmjax evaluate --workdir \S*smol-seed0`"):
        compare(runs)
    clash = [write_run(tmp_path / "b" / name, {}, depth=len(name)) for name in ("q", "q-0", "q-1")]
    with pytest.raises(ValueError, match="rename them so that each system has a name of its own"):
        compare(clash)


@pytest.mark.parametrize(
    "text, message",
    [
        ("nothing\n", f"wants one line {BEGIN}, has 0"),
        (f"{BEGIN}\n{BEGIN}\n{END}\n", f"wants one line {BEGIN}, has 2"),
        (f"{BEGIN}\nx\n", f"wants one line {END}, has 0"),
        (f"{BEGIN}\n{END}\n{END}\n", f"wants one line {END}, has 2"),
        (f"{END}\nx\n{BEGIN}\n", "in line 1 stands before .* in line 3"),
    ],
)
def test_marks_that_are_wrong_change_nothing(tmp_path, runs, text, message):
    (tmp_path / "r.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        compare_into(tmp_path / "r.md", runs)
    assert (tmp_path / "r.md").read_text() == text and not (tmp_path / "r").exists()
    with pytest.raises(FileNotFoundError, match="no such file; make one with the lines"):
        compare_into(tmp_path / "missing.md", runs)


def test_into_a_file(tmp_path, runs):
    file, before, after = tmp_path / "my results.md", f"# A\r\n  \n{BEGIN}\n", f"{END}\nThe end, without a newline"
    file.write_text(f"{before}old\n{after}", newline="")
    for _ in range(2):  # the second time changes nothing
        written = compare_into(file, runs)
        assert written == [file, *(tmp_path / "my results" / name for name in ("curves.svg", "examples.svg"))]
        text = file.read_bytes().decode()
        assert text.startswith(before) and text.endswith(after)
        lines = text[len(before) : -len(after)].strip()
        assert lines.startswith(GOLDEN) and re.findall(r"\((\S+)\)$", lines, re.MULTILINE) == [
            "my%20results/curves.svg",
            "my%20results/examples.svg",
        ]


def drawing(file):
    """The texts of an SVG that must be well formed and load nothing, and its root."""
    text = file.read_text("utf-8")
    root = ElementTree.fromstring(text)
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "<style" not in text and "class=" not in text
    return [node.text for node in root.iter(f"{SVG}text")], root


def test_curves(tmp_path, runs):
    (tmp_path / "r.md").write_text(f"{BEGIN}\n{END}\n")
    compare_into(tmp_path / "r.md", runs)
    texts, root = drawing(tmp_path / "r" / "curves.svg")
    for text in ("smol (3 seeds)", "x|attn", "sft", "step", "training loss, nats per token (log scale)", "400"):
        assert text in texts
    lines = [node for node in root.iter(f"{SVG}path") if node.get("fill") == "none"]
    assert len(lines) == 4 and len({line.get("stroke") for line in lines}) == 2
    places = [[float(n) for n in re.findall(r"[\d.]+", line.get("d"))] for line in lines]
    assert all(x[1] < x[-1] for x in places), "a loss that falls is a line that falls"


def test_the_contact_sheet_shows_what_all_systems_answered(tmp_path, runs):
    (tmp_path / "r.md").write_text(f"{BEGIN}\n{END}\n")
    compare_into(tmp_path / "r.md", runs)
    texts, root = drawing(tmp_path / "r" / "examples.svg")
    assert "Easy vqa" in texts and texts.count("what is it?") == 2 and "only here" not in texts
    assert len(list(root.iter(f"{SVG}image"))) == 2
    right, wrong = ({n.text for n in root.iter(f"{SVG}text") if n.get("fill") == tone} for tone in (RIGHT, WRONG))
    assert right == {"✓", "circle"} and wrong == {"✗", "triangle", "square <b>\ufffd"}


def test_a_sheet_of_large_pictures_stays_small(tmp_path):
    rng, files = np.random.default_rng(0), []
    for _ in range(20):
        files.append(io.BytesIO())
        Image.fromarray(rng.integers(0, 255, (224, 224, 3), np.uint8)).save(files[-1], "PNG")
    images = [base64.b64encode(file.getvalue()).decode() for file in files] + ["no picture"]
    examples = [dict(id=str(i), image=image, reference="a", prediction="A") for i, image in enumerate(images)]
    run = write_run(tmp_path / "a", dict(captions={}), examples=dict(captions=examples, empty=[dict(id="0")]))
    sheet = contact_sheet(read_systems([run]))
    assert len(sheet) < 300_000 and sheet.count("<image ") == 18 and "empty" not in sheet
    without = write_run(tmp_path / "b", {}, depth=2)
    assert contact_sheet(read_systems([without])) is None
    assert "no examples of b" in contact_sheet(read_systems([run, without]))


def test_words_are_wrapped():
    assert wrap("a photo of a cat", 10, 40, 3) == ["a photo", "of a cat"]
    assert wrap("", 10, 40, 3) == [] and wrap("one two three four", 10, 40, 1) == ["one t…"]
    assert all(width(line, 10) <= 40 for line in wrap("W" * 50 + " x" * 9, 10, 40, 30))


def test_from_training_to_the_table(tmp_path):
    """A run, trained and evaluated, beside a copy with another seed."""
    write_data(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    pictures = [dict(record, conversations=record["conversations"][:2]) for record in records if "image" in record]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pictures))
    captions = dict(type="evaluation.benchmarks.captions.evaluate", test=str(tmp_path / "test.jsonl"))
    captions |= dict(question="What colour is it?", limit=4, examples=3)
    raw = config(tmp_path, steps=2) | dict(stages=["sft"], evaluation=dict(captions=captions))
    del raw["pretrain"]
    train(raw, str(tmp_path / "tiny-0"))
    evaluate(tmp_path / "tiny-0")
    shutil.copytree(tmp_path / "tiny-0", tmp_path / "tiny-1")
    (tmp_path / "tiny-1" / "config.json").write_text(json.dumps(raw | dict(seed=1)))
    (tmp_path / "r.md").write_text(f"{BEGIN}\n{END}\n")
    output, code = run("compare", tmp_path / "tiny-0", tmp_path / "tiny-1", "--into", tmp_path / "r.md")
    assert code == 0 and f"Written: {tmp_path / 'r.md'}" in output
    text = (tmp_path / "r.md").read_text()
    assert "Runs: tiny 2 (seeds 0, 1)" in text and "| captions | tiny | " in text and "count: 4." in text
    assert len(list(drawing(tmp_path / "r" / "examples.svg")[1].iter(f"{SVG}image"))) == 3
    assert "sft" in drawing(tmp_path / "r" / "curves.svg")[0]
    output, code = run("compare")
    assert code != 0 and "compare wants RUN" in output


def run(*arguments):
    """What a command prints, and its exit status."""
    process = mmjax(*arguments)
    return process.communicate(timeout=100)[0], process.returncode
