"""`mmjax evaluate` that is stopped, fails, meets bad records, or may not write: nothing measured is lost."""

import json
import shutil

import pytest
import small_benchmarks
from small_disk import other_folder, read_only
from tiny_run import config, write_data

from mmjax.config import find_benchmarks, read_config
from mmjax.errors import UserError
from mmjax.evaluation.run import evaluate
from mmjax.inference.chat import Assistant
from mmjax.training.stages import train

COUNTS = dict(type="small_benchmarks.counts", word="a")
FAILS = dict(type="small_benchmarks.fails")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, 20 questions on pictures in test.jsonl, and a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    pictures = [dict(record, conversations=record["conversations"][:2]) for record in records if "image" in record]
    (folder / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pictures[:20]))
    raw = config(folder, steps=2) | dict(stages=["sft"])
    del raw["pretrain"]
    train(raw, str(folder / "run"))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, and what gives it benchmarks."""
    small_benchmarks.CALLS.clear()
    small_benchmarks.FAIL.clear()
    shutil.copytree(trained / "run", tmp_path / "run")

    def give(**benchmarks):
        file = tmp_path / "run" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(evaluation=benchmarks)))
        return tmp_path / "run"

    return give


def figures(run):
    return json.loads((run / "eval.json").read_text())


def again(run):
    return evaluate(run, ["small_benchmarks"])


def test_what_is_done_is_kept_and_not_run_again(run):
    workdir = run(first=COUNTS, second=FAILS, third=COUNTS | dict(word="c"))
    small_benchmarks.FAIL.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        again(workdir)
    measured = figures(workdir)["first"]["measured"]
    assert {key: measured[key] for key in ("stage", "step", "steps")} == dict(stage="sft", step=2, steps=2)
    assert list(json.loads((workdir / "examples.json").read_text())) == ["first"]
    found = again(workdir)
    assert small_benchmarks.CALLS == ["a", "fails", "fails", "c"]
    assert list(found)[:3] == list(figures(workdir))[:3] == ["first", "second", "third"]
    assert found["first"]["examples"][0]["image"] == "eA=="
    run(first=COUNTS | dict(word="other"), second=FAILS)
    again(workdir)
    assert small_benchmarks.CALLS[4:] == ["other"] and "third" not in figures(workdir)
    manifest = workdir / "sft" / "checkpoints" / "2" / "manifest.json"  # of other weights at the same step
    manifest.write_text(manifest.read_text() + "\n")
    again(workdir)
    assert small_benchmarks.CALLS[5:] == ["other", "fails"]


@pytest.mark.parametrize("kind", [UserError, ZeroDivisionError])
def test_one_that_fails_does_not_lose_the_others(run, kind):
    workdir = run(first=FAILS, second=COUNTS)
    small_benchmarks.FAIL.append(kind("too few"))
    with pytest.raises(kind) as raised:
        again(workdir)
    assert "evaluation.first: too few" in f"{raised.value} {getattr(raised.value, '__notes__', '')}"
    assert figures(workdir)["second"]["accuracy"] == 0.5 and "first" not in figures(workdir)
    assert (workdir / "report.html").exists()
    again(workdir)
    assert small_benchmarks.CALLS == ["fails", "a", "fails"]


def test_answers_are_kept_as_they_come(run, trained, monkeypatch):
    asked, generate = [], Assistant.generate

    def counted(self, prompts, sampling=None):
        asked.extend(prompt.id for prompt in prompts)
        return generate(self, prompts, sampling)

    monkeypatch.setattr(Assistant, "generate", counted)
    workdir = run(halves=dict(type="small_benchmarks.halves", test=str(trained / "test.jsonl")))
    small_benchmarks.FAIL.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        again(workdir)
    kept = workdir / "answers" / "halves.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    assert [json.loads(line).get("id") for line in lines] == [
        None,
        *(f"test.jsonl:{i + 1}:square-{i}" for i in range(8)),
    ]
    kept.write_text("".join(lines)[:-3])  # killed while it wrote the last
    asked.clear()
    assert again(workdir)["halves"]["answers"] == 20
    assert [id.rpartition("-")[2] for id in asked] == [str(i) for i in range(7, 20)]
    (workdir / "eval.json").unlink()
    header = json.loads(lines[0]) | dict(step=1)
    kept.write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    asked.clear()
    again(workdir)
    assert len(asked) == 20, "answers of another step are none of this one"


def broken(trained, bad):
    """test.jsonl with bad records: a damaged picture, no record, a question that is too long."""
    records = [json.loads(line) for line in (trained / "test.jsonl").read_text().splitlines()]
    (trained / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    kinds = {"picture": dict(image="damaged.png"), "record": dict(image="../none.png")}
    for i, kind in enumerate(bad):
        records[i] |= kinds[kind]
    file = trained / f"bad-{len(bad)}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


@pytest.mark.parametrize("name", ["captions", "naming", "easy_vqa", "halves"])
def test_bad_records_are_refused_one_by_one(run, trained, name):
    bad = ("picture",) if name == "halves" else ("picture", "record")
    options = dict(
        captions=dict(question="What colour is it?", limit=0, examples=3),
        naming=dict(question="What colour is it?", limit=0, choices=2),
        easy_vqa=dict(train=str(trained / "test.jsonl"), limit=0, examples=3),
        halves=dict(),
    )[name]
    room = "small_benchmarks.halves" if name == "halves" else f"evaluation.benchmarks.{name}.evaluate"
    workdir = run(it=dict(type=room, test=broken(trained, bad), **options))
    again(workdir)
    found = figures(workdir)["it"]
    assert found["refused"][-1]["id"].endswith(":square-0") and len(found["refused"]) == len(bad)
    assert all(one["reason"] for one in found["refused"])
    assert found.get("count", 18) == 18 and found.get("answers", 20) == 20


def test_more_than_a_tenth_refused_is_an_error(run, trained):
    options = dict(question="", limit=0, examples=3, test=broken(trained, ("picture", "record", "picture")))
    workdir = run(it=dict(type="evaluation.benchmarks.captions.evaluate", **options))
    with pytest.raises(
        UserError, match=r"evaluation.it: it: \d of \d+ records are refused, more than a tenth.*square-"
    ):
        again(workdir)
    assert not (workdir / "eval.json").exists()


def test_a_workdir_that_cannot_be_written_is_refused_first(run):
    workdir = run(first=COUNTS)
    with other_folder() as folder:
        shutil.copytree(workdir, folder / "run")
        with read_only(folder / "run"), pytest.raises(UserError, match=r"/run: cannot be written to \(Permission"):
            again(folder / "run")
    assert not small_benchmarks.CALLS


def test_a_damaged_eval_json_is_one_error_before_anything_is_measured(run):
    workdir = run(first=COUNTS)
    (workdir / "eval.json").write_text('{"first": [1]}')
    with pytest.raises(UserError, match=r"eval.json.first: \[1\] is not .* remove it"):
        again(workdir)
    assert not small_benchmarks.CALLS


@pytest.mark.parametrize(
    "name, spec, message",
    [
        ("x", dict(type="evaluation.benchmarks.captons.evaluate"), "no module 'evaluation.benchmarks.captons'"),
        ("x", dict(type="evaluation.benchmarks.perplexity.evaluate", windows=2), "requires length"),
        ("x", dict(type="evaluation.benchmarks.perplexity.evaluate", window=2), "did you mean 'windows'"),
        ("x", dict(type="evaluation.benchmarks.perplexity.evaluate", windows="2", length=2), "is not of type int"),
        ("x", COUNTS | dict(stage="sfd"), r"evaluation.x.stage: no stage 'sfd'; did you mean 'sft'\?"),
        ("x", COUNTS | dict(stage=3), "no stage 3"),
        ("seconds", COUNTS, "something else under 'seconds'"),
        ("a/b", COUNTS, "'a/b' cannot be the name of a file"),
    ],
)
def test_benchmarks_are_bound_without_a_model(tmp_path, name, spec, message):
    good = config(tmp_path) | dict(evaluation=dict(good=COUNTS | dict(stage="sft")))
    assert find_benchmarks(read_config(good))["good"].stage == "sft"
    with pytest.raises(UserError, match=message):
        find_benchmarks(read_config(good | dict(evaluation={name: spec})))
    assert find_benchmarks(read_config(good | dict(evaluation=None))) == {}
