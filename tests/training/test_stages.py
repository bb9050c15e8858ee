"""Whole runs: stages in order, resuming to the bit, kills and signals, static shapes, bad steps."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from small import read_params
from tiny_run import config, metrics, mmjax, write_config, write_data

from mmjax import tree
from mmjax.data.pipeline import Dataset
from mmjax.nn.linear import merge_lora
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Stopped, TooManySkipped
from mmjax.training.stages import train
from mmjax.training.trained import TrainedTensors, trained_parameters


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_data(folder)
    return folder


def saved(workdir, stage="sft", step=None):
    """All parameters of a checkpoint, by default the newest: {'trainable/...': array, 'frozen/...': array}."""
    with Checkpoints(workdir / stage / "checkpoints", keep=3) as checkpoints:
        return tree.flatten(jax.device_get(read_params(checkpoints, step)))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config(data), workdir)
    return workdir


def test_stages_follow_each_other(whole):
    pretrain, sft = (metrics(whole, stage) for stage in ("pretrain", "sft"))
    assert [line["step"] for line in pretrain] == [line["step"] for line in sft] == [1, 2, 3, 4, 5, 6]
    # The second stage starts from the weights of the first, not from scratch.
    assert sft[0]["loss"] < pretrain[0]["loss"]
    assert sft[-1]["loss"] < sft[0]["loss"]


def test_frozen_parameters_do_not_move(data, tmp_path):
    train(config(data, save_every=2), tmp_path, only="pretrain")
    early, late = (saved(tmp_path, "pretrain", step) for step in (2, 6))
    trained = {path for path in late if path.startswith("trainable/")}
    assert trained and all("/projectors/" in path for path in trained)
    for path in late:
        same = np.array_equal(early[path], late[path])
        assert same == (path not in trained), path


@pytest.mark.parametrize(
    ("stop_after", "number"), [(1, signal.SIGTERM), (3, signal.SIGINT), (8, signal.SIGTERM)], ids=str
)
def test_a_stopped_run_goes_on_bit_equal(data, whole, tmp_path, monkeypatch, stop_after, number):
    """Stopped after that many steps (8: in the second stage), then resumed by the same call."""
    from mmjax.training.loop import Loop

    steps = 0
    save = Loop._log

    def log_then_stop(self, *arguments):
        nonlocal steps
        save(self, *arguments)
        steps += 1
        if steps == stop_after:
            signal.raise_signal(number)

    monkeypatch.setattr(Loop, "_log", log_then_stop)
    with pytest.raises(Stopped):
        train(config(data), tmp_path)
    monkeypatch.undo()
    train(config(data), tmp_path)
    assert_same(saved(tmp_path), saved(whole))
    for stage in ("pretrain", "sft"):
        same = ("step", "loss", "grad_norm", "tokens")
        assert [[line[k] for k in same] for line in metrics(tmp_path, stage)] == [
            [line[k] for k in same] for line in metrics(whole, stage)
        ]


def test_one_stage_alone(data, whole, tmp_path):
    with pytest.raises(ValueError, match="starts from 'pretrain', which is not done"):
        train(config(data), tmp_path, only="sft")
    train(config(data), tmp_path, only="pretrain")
    assert not (tmp_path / "sft" / "metrics.jsonl").exists()
    train(config(data), tmp_path, only="sft")
    assert_same(saved(tmp_path), saved(whole))


def test_no_compilation_after_the_first_step(whole, data, tmp_path):
    """Rows with pictures, with none, and a validation in between: one program all the same."""
    changes = dict(steps=12, valid=dict(every=4, data=config(data)["sft"]["data"]))
    raw = config(data, **changes)
    raw["stages"] = ["sft"]
    del raw["pretrain"]
    jax.clear_caches()  # as in a process of its own: nothing that other tests compiled
    train(raw, tmp_path)
    lines = metrics(tmp_path, "sft")
    assert [line["compilations"] for line in lines if "compilations" in line] == [0] * 12
    valid = [line["valid_next_token"] for line in lines if "valid_next_token" in line]
    assert len(valid) == 3 and valid[-1] < valid[0]


def test_lora_stage_adds_adapters_and_trains_them_alone(data, tmp_path):
    raw = config(data)
    raw["sft"] |= dict(lora=[[r"backbone/layers/attention/(query|value)/kernel", dict(rank=2, alpha=4)]])
    raw["sft"] |= dict(trainable=[r"lora_[ab]$", r"^projectors/"])
    train(raw, tmp_path)
    after, before = saved(tmp_path), saved(tmp_path, "pretrain")
    trained = {path for path in after if path.startswith("trainable/")}
    assert any(path.endswith("lora_a") for path in trained)
    assert not any("backbone" in path and "lora" not in path for path in trained)
    assert np.abs(after["trainable/backbone/layers/attention/query/lora_b"]).max() > 0
    path = "frozen/backbone/layers/attention/query/kernel"
    np.testing.assert_array_equal(after[path], before[path])


def test_a_bad_step_is_skipped_and_too_many_stop_the_run(data, tmp_path, caplog):
    raw = config(data, steps=8)
    raw["stages"] = ["sft"]
    del raw["pretrain"]
    raw["sft"]["optimizer"] |= dict(lr=1e30, clip=0.0, warmup=0)  # the first update leaves nothing finite behind
    with pytest.raises(TooManySkipped, match="max_skipped allows 2"):
        train(raw, tmp_path)
    assert "Samples: " in caplog.text and "square-" in caplog.text


def test_another_model_in_the_same_workdir_is_refused(data, whole):
    raw = config(data)
    raw["model"]["backbone"]["width"] = 64
    with pytest.raises(ValueError, match=r"model.backbone.width: 32 before, 64 now"):
        train(raw, whole)


def test_rows_longer_than_learned_positions_are_refused(data, tmp_path):
    raw = config(data)
    raw["model"]["backbone"] |= dict(max_positions=40, rope_theta=0.0)
    with pytest.raises(ValueError, match=r"data.length: 48 tokens; model.backbone.max_positions is 40"):
        train(raw, tmp_path)


def test_changed_data_is_noticed(data, tmp_path):
    raw = config(data, steps=2)
    raw["pretrain"]["optimizer"] |= dict(schedule="constant", final=1)
    train(raw, tmp_path / "run", only="pretrain")
    lines = (data / "train.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[:-1]))
    raw["pretrain"]["steps"] = 3
    raw["pretrain"]["data"]["sources"]["main"]["path"] = str(tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match="data is not what this stage was trained on"):
        train(raw, tmp_path / "run", only="pretrain")


@pytest.mark.parametrize("kept", ["content", "lengths"])
def test_edits_of_the_same_lengths_are_noticed_where_contents_are_kept(kept, data, tmp_path, monkeypatch):
    raw = config(data, steps=2)
    raw["pretrain"]["optimizer"] |= dict(schedule="constant", final=1)
    with monkeypatch.context() as patch:
        if kept == "lengths":  # what mmjax wrote before
            patch.setattr(Dataset, "fingerprint", property(lambda data: data.plan.fingerprint))
        train(raw, tmp_path / "run", only="pretrain")
    records = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    records[0]["conversations"][-1]["weight"] = 0.5
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, records)))
    raw["pretrain"]["steps"] = 3
    raw["pretrain"]["data"]["sources"]["main"] |= dict(path=str(tmp_path / "other.jsonl"), root=str(data))
    if kept == "content":
        with pytest.raises(ValueError, match="other records, answers, pictures"):
            train(raw, tmp_path / "run", only="pretrain")
    else:
        train(raw, tmp_path / "run", only="pretrain")
        assert [line["step"] for line in metrics(tmp_path / "run", "pretrain")] == [1, 2, 3]


@pytest.mark.slow
def test_sigkill_at_any_moment_then_the_same_command(data, whole, tmp_path):
    """A process is killed at several moments of its life; the last one finishes with the same weights."""
    write_config(config(data, save_every=1), tmp_path / "c.py")
    arguments = ("train", "--config", tmp_path / "c.py", "--workdir", tmp_path / "run")
    for stage, step in (("pretrain", 2), ("pretrain", 5), ("sft", 3)):
        process = mmjax(*arguments)
        file = tmp_path / "run" / stage / "metrics.jsonl"
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if file.exists() and sum(1 for _ in file.open()) >= step:
                break
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
    process = mmjax(*arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_same(saved(tmp_path / "run"), saved(whole))


def test_sigterm_saves_and_exits_cleanly(data, tmp_path):
    write_config(config(data, steps=5000), tmp_path / "c.py")
    process = mmjax("train", "--config", tmp_path / "c.py", "--workdir", tmp_path / "run")
    file = tmp_path / "run" / "pretrain" / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (file.exists() and sum(1 for _ in file.open()) >= 3):
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "The same command goes on from there." in output
    last = json.loads(file.read_text().splitlines()[-1])["step"]
    with Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.latest() == last


@pytest.fixture(scope="module")
def adapted(data, tmp_path_factory):
    """(config, workdir) of a run with adapters in its second stage and running means in both."""
    raw, workdir = config(data, ema=0.5), tmp_path_factory.mktemp("adapted")
    raw["sft"] |= dict(lora=[("attention/", dict(rank=4, alpha=8))], trainable=["^projectors/", "/lora_[ab]$"])
    train(raw, workdir)
    return raw, workdir


def test_stages_on_several_devices(adapted, data, tmp_path, monkeypatch):
    """Both stages split over four devices; then an answer with four devices in sight."""
    raw, workdir = adapted
    write_config(raw | dict(mesh=dict(fsdp=4)), tmp_path / "c.py")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4")
    picture = ("--image", data / "0.png", "--prompt", "What colour is it?")
    for command in (("train", "--config", tmp_path / "c.py"), ("generate", *picture)):
        process = mmjax(*command, "--workdir", tmp_path / "four")
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    for stage in ("pretrain", "sft"):
        one, four = ([line["loss"] for line in metrics(run, stage)] for run in (workdir, tmp_path / "four"))
        np.testing.assert_allclose(four, one, rtol=1e-4)


@pytest.mark.parametrize("merged", [True, False])
def test_trained_tensors_are_the_trained_parameters(adapted, merged):
    """Read one by one, layer by layer; none is kept."""
    with Checkpoints(adapted[1] / "sft" / "checkpoints", keep=3) as checkpoints:
        params, tensors = trained_parameters(checkpoints), TrainedTensors(checkpoints, merged)
        averaged = read_params(checkpoints)["ema"]
    assert_same(tree.flatten(averaged), {path: tree.flatten(params)[path] for path in tree.flatten(averaged)})
    params = tree.flatten(merge_lora(params) if merged else params)
    assert tensors.specs.keys() == params.keys()
    assert {path.split("/")[0] for path in params} == {"backbone", "encoders", "projectors"}
    for path, leaf in params.items():
        stacked = "/layers/" in path
        found = np.stack([tensors.read(path, i) for i in range(len(leaf))]) if stacked else tensors.read(path)
        np.testing.assert_array_equal(found, leaf, err_msg=path)
    assert not tensors._held
