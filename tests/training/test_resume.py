"""A workdir holds what it was trained with: a run goes on exactly, or names the key that differs."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from small import read_params
from tiny_run import config, write_data

import mmjax
from mmjax import tree
from mmjax.errors import UserError
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Loop, Stopped
from mmjax.training.stages import train
from mmjax.training.trained import TrainedTensors, trained_parameters
from mmjax.workdir import locked


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_data(folder)
    return folder


def rounded(data, **changes):
    """A config whose frozen weights are bfloat16 on the device, where two steps of a stage are kept."""
    raw = config(data, **dict(steps=4, save_every=2) | changes)
    raw["precision"]["frozen_dtype"] = "bfloat16"
    return raw


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """(config, workdir) of a run of two stages that is done."""
    workdir = tmp_path_factory.mktemp("done")
    train(rounded(data), workdir)
    return rounded(data), workdir


def saved(workdir, stage):
    with Checkpoints(workdir / stage / "checkpoints", keep=3) as checkpoints:
        return tree.flatten(jax.device_get(read_params(checkpoints)))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def contents(folder):
    """{path: bytes} of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def set_key(raw, path, value):
    raw = copy.deepcopy(raw)
    *parents, last = path.split(".")
    node = raw
    for key in parents:
        node = node[key]
    node[last] = value
    return raw


def copied(done, folder):
    """A copy of the workdir that is done, for tests that change it."""
    shutil.copytree(done[1], folder)
    return folder


REFUSED = {
    "seed": 1,
    "model.backbone.mlp_width": 32,
    "precision.frozen_dtype": "float32",
    "precision.compute_dtype": "bfloat16",
    "load": [["backbone", "hf:elsewhere"]],
    "pretrain.steps": 2,
    "pretrain.batch": 2,
    "sft.steps": 3,
    "sft.batch": 2,
    "sft.data.template": "vicuna_v1",
    "sft.data.length": 32,
    "sft.data.media.size": 17,
    "sft.data.sources.main.weight": 2.0,
    "sft.data.sources.more": dict(path="x.jsonl", root="", weight=1.0),
    "sft.losses.next_token.weight": 2.0,
    "sft.trainable": ["^backbone/"],
    "sft.lora": [["attention/", dict(rank=2, alpha=4)]],
    "sft.optimizer.lr": 1.0,
    "sft.accumulate": 2,
    "sft.ema": 0.5,
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_that_would_train_otherwise_is_refused_by_name(done, path):
    raw, workdir = done
    before, old = contents(workdir), raw
    for key in path.split("."):
        old = old.get(key)
    with pytest.raises(UserError) as error:
        train(set_key(raw, path, REFUSED[path]), workdir)
    assert f"  {path}: {json.dumps(old)} before, {json.dumps(REFUSED[path])} now" in str(error.value)
    assert "another --workdir" in str(error.value)
    assert contents(workdir) == before


def test_more_steps_on_a_falling_schedule_are_refused_with_what_to_do(done):
    with pytest.raises(UserError, match=r"(?s)sft.steps: 4 before, 9 now.*schedule='constant'.*add a stage"):
        train(set_key(done[0], "sft.steps", 9), done[1])


@pytest.mark.parametrize("stages", [["sft", "pretrain"], ["sft"], ["pretrain"]])
def test_other_stages_or_another_order_are_refused(done, stages):
    raw = done[0] | {"stages": stages}
    for name in {"sft", "pretrain"} - set(stages):
        del raw[name]
    with pytest.raises(UserError, match=r"stages: .* has trained \['pretrain', 'sft'\], in this order"):
        train(raw, done[1])


def test_a_stage_of_another_name_is_refused(done):
    raw = done[0] | {"stages": ["pretrain", "tune"], "tune": done[0]["sft"]}
    del raw["sft"]
    with pytest.raises(UserError, match=r"stages: .* the config has \['pretrain', 'tune'\]"):
        train(raw, done[1])


def test_a_run_that_is_done_changes_nothing(done):
    raw, workdir = done
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    train(raw, workdir)
    train(raw, workdir, only="pretrain")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


HARMLESS = {
    "evaluation": dict(mine=dict(type="evaluation.benchmarks.perplexity.evaluate", windows=4, length=32)),
    "keep": 1,
    "max_skipped": 9,
    "remat": True,
    "data_dir": "elsewhere",
    "sft.log_every": 7,
    "sft.data.threads": 3,
    "sft.data.sources.main.path": "moved.jsonl",
    "pretrain.valid": None,
    "tokenizer.path": "elsewhere/tokenizer.model",
}


def test_keys_of_no_step_may_change_and_are_written_down(done, tmp_path):
    workdir = copied(done, tmp_path / "run")
    raw = done[0]
    for path, value in HARMLESS.items():
        raw = set_key(raw, path, value)
    train(raw, workdir)
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(raw))
    assert mmjax.load(workdir)("Hello.")


def test_another_tokenizer_under_its_name_is_refused(done, tmp_path):
    other = tmp_path / "tokenizer.model"
    other.write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer.path: .* is not the tokenizer that .* was trained with"):
        train(set_key(done[0], "tokenizer.path", str(other)), done[1])


def test_a_longer_run_on_a_constant_schedule_is_as_if_it_was_meant(data, tmp_path):
    raw = config(data, steps=4)
    raw["stages"] = ["sft"]
    del raw["pretrain"]
    raw["sft"]["optimizer"] |= dict(schedule="constant", final=1)
    train(raw, tmp_path / "long")
    train(set_key(raw, "sft.steps", 2), tmp_path / "short")
    train(raw, tmp_path / "short")
    assert_same(saved(tmp_path / "short", "sft"), saved(tmp_path / "long", "sft"))
    with pytest.raises(UserError, match=r"sft.steps: 4 before, 2 now"):
        train(set_key(raw, "sft.steps", 2), tmp_path / "short")


def test_frozen_weights_keep_their_precision(done):
    """At rest, for the next stage and for an export; once, and not with every step."""
    _, workdir = done
    frozen = {path: leaf for path, leaf in saved(workdir, "pretrain").items() if path.startswith("frozen/")}
    coarse = [
        path
        for path, leaf in frozen.items()
        if leaf.std() and np.array_equal(leaf, leaf.astype("bfloat16").astype(np.float32))
    ]
    assert frozen and not coarse
    with Checkpoints(workdir / "pretrain" / "checkpoints", keep=3) as checkpoints:
        tensors, params = TrainedTensors(checkpoints, merged=True), tree.flatten(trained_parameters(checkpoints))
        seen = tree.flatten(trained_parameters(checkpoints, frozen_dtype="bfloat16"))
        for path, leaf in frozen.items():
            name = path.removeprefix("frozen/")
            np.testing.assert_array_equal(tensors.read(name), leaf)
            np.testing.assert_array_equal(params[name], leaf)
            assert seen[name].dtype == "bfloat16"
    steps = [path for step in (2, 4) for path in (workdir / f"pretrain/checkpoints/{step}/params").rglob("*")]
    size = sum(path.stat().st_size for path in steps if path.is_file())
    assert size < sum(leaf.nbytes for leaf in frozen.values())


def stop_after(monkeypatch, steps):
    """Lets the next run stop as if by a signal, after so many steps."""
    run = Loop.run

    def stopped(self, state, position, stop, profile):
        log = self._log

        def log_then_stop(*arguments):
            log(*arguments)
            if arguments[1] == steps:
                stop.set()

        self._log = log_then_stop
        run(self, state, position, stop, profile)

    monkeypatch.setattr(Loop, "run", stopped)


def test_rounded_frozen_weights_come_back_as_they_were(done, tmp_path, monkeypatch):
    raw, workdir = done
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        train(raw, tmp_path, only="pretrain")
    monkeypatch.undo()
    train(raw, tmp_path, only="pretrain")
    assert_same(saved(tmp_path, "pretrain"), saved(workdir, "pretrain"))


def flip_a_byte(folder):
    """In the largest file of a folder."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_stage_with_a_damaged_end_is_finished_before_the_next_begins(done, tmp_path, caplog):
    raw, workdir = done
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("sft"))
    flip_a_byte(tmp_path / "run/pretrain/checkpoints/4")
    train(raw, tmp_path / "run")
    assert "DAMAGED CHECKPOINT" in caplog.text
    for stage in ("pretrain", "sft"):
        assert_same(saved(tmp_path / "run", stage), saved(workdir, stage))


def test_a_stage_alone_does_not_begin_from_a_damaged_end(done, tmp_path):
    raw, workdir = done
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("sft"))
    flip_a_byte(tmp_path / "run/pretrain/checkpoints/4")
    with pytest.raises(UserError, match="'sft' starts from 'pretrain', which is not done"):
        train(raw, tmp_path / "run", only="sft")


def test_what_the_next_stage_has_begun_from_is_not_trained_again(done, tmp_path):
    raw, _ = done
    workdir = copied(done, tmp_path / "run")
    flip_a_byte(workdir / "pretrain/checkpoints/4")
    before = contents(workdir)
    train(raw, workdir)
    assert contents(workdir) == before


def test_damaged_frozen_weights_are_named(done, tmp_path):
    raw, _ = done
    workdir = copied(done, tmp_path / "run")
    shutil.rmtree(workdir / "sft")
    flip_a_byte(workdir / "pretrain/checkpoints/frozen")
    for use in (lambda: train(raw, workdir), lambda: mmjax.load(workdir, "pretrain")):
        with pytest.raises(UserError, match=r"checkpoints/frozen: .* are damaged: .*SHA-256 differs"):
            use()
    shutil.rmtree(workdir / "pretrain/checkpoints/frozen")
    with pytest.raises(UserError, match=r"checkpoints/frozen: .* are missing"):
        mmjax.load(workdir, "pretrain")


def test_a_run_that_cannot_start_leaves_no_trace_in_what_is_kept(data, tmp_path):
    raw = set_key(config(data), "pretrain.data.media.size", -1)
    with pytest.raises(UserError):
        train(raw, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "tokenizer.model").exists()


def test_a_second_process_is_kept_out(done):
    raw, workdir = done
    with (
        locked(workdir, writes=True),
        pytest.raises(UserError, match="another process is training or writing there"),
    ):
        train(raw, workdir)
    train(raw, workdir)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_workdir_that_is_a_file_is_named(data, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"--workdir {tmp_path / name}: cannot be used as a folder"):
        train(config(data), tmp_path / name)


def test_a_workdir_moves_with_all_that_it_needs(data, tmp_path, monkeypatch):
    """Stopped, moved with its data left behind under other names, loaded, and trained to its end elsewhere."""
    (tmp_path / "old").mkdir()
    shutil.copy(data / "tokenizer.model", tmp_path / "old" / "tokenizer.model")
    (tmp_path / "old" / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    raw = config(data, steps=2)
    raw["stages"] = ["sft"]
    del raw["pretrain"]
    raw["tokenizer"]["path"] = str(tmp_path / "old" / "tokenizer.model")
    raw["sft"]["data"]["template"] = f"file:{tmp_path / 'old' / 'mine.jinja'}"
    raw["sft"]["data"]["sources"]["main"]["path"] = str(data / "train.jsonl")
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        train(raw, tmp_path / "old" / "run")
    monkeypatch.undo()
    before = mmjax.load(tmp_path / "old" / "run")("What colour is it?")
    shutil.move(tmp_path / "old" / "run", tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    assert mmjax.load(tmp_path / "new")("What colour is it?") == before
    raw = json.loads((tmp_path / "new" / "config.json").read_text())
    train(raw, tmp_path / "new")
    assert saved(tmp_path / "new", "sft")
