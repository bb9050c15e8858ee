"""Runs that stopped half way, figures older than the model, and files of another shape, in `mmjax compare`."""

import json
import os

import pytest

from mmjax.errors import UserError
from mmjax.evaluation.compare import compare, compare_into
from mmjax.evaluation.progress import training_seconds

STAGES = dict(pretrain=500, sft=1000)


def write_run(workdir, seed=0, done=STAGES, measured=None, checkpoints=True, accuracy=0.5, **more):
    """A workdir whose stages came to the steps `done`; measured: (stage, step), as eval.json says it."""
    workdir.mkdir()
    for stage, steps in done.items():
        (workdir / stage).mkdir()
        if checkpoints:
            (workdir / stage / "checkpoints" / str(steps)).mkdir(parents=True)
            (workdir / stage / "checkpoints" / "damaged-9999").mkdir()
        lines = [dict(step=step, loss=1.0, seconds=step / 10) for step in range(100, steps + 1, 100)]
        lines.append(dict(step=lines[-1]["step"], valid_next_token=2.0))  # as a stage ends that validates
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 123, "lo'
        (workdir / stage / "metrics.jsonl").write_text(text)
    sections = {stage: dict(steps=steps) for stage, steps in STAGES.items()}
    config = dict(seed=seed, stages=list(STAGES), load=[], evaluation=dict(easy=dict(type="x.y"))) | sections
    (workdir / "config.json").write_text(json.dumps(config))
    figures = dict(accuracy=accuracy)
    if measured:
        figures["measured"] = dict(stage=measured[0], step=measured[1], steps=STAGES[measured[0]])
    (workdir / "eval.json").write_text(json.dumps(dict(easy=figures) | more))
    return workdir


def systems(*runs):
    """The rows of the benchmark's table: system -> figure."""
    lines = [line.strip("| ").split(" | ") for line in compare(runs).splitlines() if line.startswith("| easy |")]
    return {system: figure for _, system, figure in lines}


HALF = dict(pretrain=500, sft=200)


@pytest.mark.parametrize(
    "how, name",
    [
        (dict(done=HALF), "r-2 (sft, step 200 of 1,000)"),
        (dict(done=HALF, checkpoints=False), "r-2 (sft, step 200 of 1,000)"),
        (dict(done=HALF, measured=("sft", 200)), "r-2 (sft, step 200 of 1,000)"),
        (dict(measured=("sft", 200)), "r-2 (sft, step 200 of 1,000)"),
        (dict(done={}, measured=("sft", 200)), "r-2 (sft, step 200 of 1,000)"),
        (dict(done=dict(pretrain=500)), "r-2 (sft not begun)"),
        (dict(done=dict(sft=1000)), "r-2 (pretrain not begun)"),
        (dict(done={}), "r-2 (no checkpoint, no metrics)"),
        (dict(done=dict(pretrain=500, sft=1200), measured=("sft", 1000)), "r-2 (sft, step 1,000 of 1,200)"),
    ],
)
def test_a_half_run_is_no_seed(tmp_path, how, name):
    whole = [write_run(tmp_path / f"r-{seed}", seed) for seed in range(2)]
    half = write_run(tmp_path / "r-2", 2, accuracy=0.1, **how)
    assert systems(*whole, half) == {"r": "50.0", name: "10.0"}
    assert name in compare([*whole, half]).splitlines()[0]


def test_whole_runs_are_seeds_however_they_are_kept(tmp_path):
    runs = [
        write_run(tmp_path / "r-0", 0),
        write_run(tmp_path / "r-1", 1, checkpoints=False),
        write_run(tmp_path / "r-2", 2, measured=("sft", 1000)),
        write_run(tmp_path / "r-3", 3, done={}, measured=("sft", 1000)),
    ]
    assert systems(*runs) == {"r": "50.0"}


def test_figures_older_than_the_newest_checkpoint(tmp_path):
    run = write_run(tmp_path / "r")
    os.utime(run / "eval.json", (0, 0))
    assert systems(run) == {"r (measured before step 1,000)": "50.0"}
    copied = write_run(tmp_path / "c", seconds=dict(train=150.0))  # it knows all seconds that there were
    os.utime(copied / "eval.json", (0, 0))
    assert systems(copied) == {"c": "50.0"}


def test_seconds_are_those_of_the_last_line_that_tells_them(tmp_path):
    assert training_seconds(write_run(tmp_path / "r")) == 150.0
    (tmp_path / "r" / "sft" / "metrics.jsonl").write_text('[1]\n{"seconds": "x"}\n{"seconds": null}\n7\n')
    assert training_seconds(tmp_path / "r") == 50.0


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("eval.json", "[1]", "holds no JSON object"),
        ("eval.json", '{"easy": 3}', r"eval.json.easy: 3 is not of type"),
        ("eval.json", '{"easy": {"kinds": 3}}', r"eval.json.easy.kinds: 3 is not"),
        ("eval.json", '{"easy": {"kinds": {"shape": 3}}}', r"eval.json.easy.kinds: .* is not"),
        ("eval.json", '{"seconds": [1]}', r"eval.json.seconds: \[1\] is not"),
        ("eval.json", '{"parameters": {"trained": 5}}', r"eval.json.parameters.trained: 5 is not"),
        ("config.json", "3", "holds no JSON object"),
        ("config.json", '{"stages": 3}', r"config.json.stages: 3 is not"),
        ("config.json", '{"stages": ["sft"], "sft": 3}', r"config.json.sft: 3 is not"),
        ("config.json", '{"stages": ["sft"], "sft": {"losses": [1]}}', r"config.json.sft.losses: \[1\] is not"),
        ("config.json", '{"evaluation": {"easy": 3}}', r"config.json.evaluation: .* is not"),
        ("config.json", '{"load": [3]}', r"config.json.load: \[3\] is not"),
        ("examples.json", "[]", "holds no JSON object"),
        ("examples.json", "{", "is no JSON"),
        ("examples.json", '{"easy": 3}', r"examples.json.easy: 3 is not"),
        ("examples.json", '{"easy": [3]}', r"examples.json.easy: \[3\] is not"),
    ],
)
def test_files_of_another_shape(tmp_path, file, text, message):
    run = write_run(tmp_path / "r")
    (run / file).write_text(text)
    (tmp_path / "r.md").write_text("<!-- mmjax compare -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=message) as raised:
        compare_into(tmp_path / "r.md", [run])
    assert str(run / file) in str(raised.value) and "`mmjax " in str(raised.value)


def test_metrics_of_another_shape_draw_what_they_can(tmp_path):
    run = write_run(tmp_path / "r")
    with (run / "sft" / "metrics.jsonl").open("a") as lines:
        lines.write('\n{"loss": 1}\n{"step": "x", "loss": 2}\n{"step": 1000, "loss": "x"}\n[3]\n')
    (tmp_path / "r.md").write_text("<!-- mmjax compare -->\n<!-- end -->\n")
    assert len(compare_into(tmp_path / "r.md", [run])) == 2
