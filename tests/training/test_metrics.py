import io
import json
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
from small_disk import ROOM, full_disk, other_folder, read_only
from tensorboardX.proto import event_pb2

from mmjax.errors import UserError
from mmjax.training import metrics
from mmjax.training.metrics import Metrics, Progress, Timer, compilations


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_one_line_at_once_for_each_write(tmp_path):
    with Metrics(tmp_path / "run", 0, None) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "rate": 1})
        first = lines(tmp_path / "run")  # read before anything is closed
        writer.write(2, {"loss": float("nan"), "rate": float("inf")})
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines(tmp_path / "run")] == [
        {"step": 1, "loss": 0.5, "rate": 1.0},
        {"step": 2, "loss": None, "rate": None},
    ]
    assert abs(first[0]["time"] - time.time()) < 60


def test_a_resumed_run_cuts_what_came_after_its_step(tmp_path):
    with Metrics(tmp_path, 0, None) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the midst of a write
    with Metrics(tmp_path, 3, None) as writer:
        writer.write(4, {"loss": 40})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_half_written_line_is_not_joined_to_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}')
    with Metrics(tmp_path, 2, None) as writer:
        writer.write(3, {"loss": 3})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def events(file):
    """The records of a TensorBoard file: length (8 bytes), its checksum (4), event, its checksum (4)."""
    content, found = file.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_gets_the_points_and_hides_those_of_the_killed_run(tmp_path):
    with Metrics(tmp_path, 3, None) as writer:
        writer.write(4, {"train/loss": 0.5})
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = events(file)
    restart = [e.step for e in found if e.session_log.status == event_pb2.SessionLog.START]
    assert restart == [4]  # TensorBoard hides earlier events of this step and later ones
    points = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert points == [(4, "train/loss", 0.5)]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with Metrics(tmp_path / "run", 0, {"project": "p"}) as writer, Progress("sft", 4, 0, stream) as progress:
        writer.write(1, {"loss": 1})
        assert progress.update(1, 1.0, 10, 20, 0.0)["tokens_per_second"] > 0
    assert not (tmp_path / "run").exists() and stream.getvalue() == ""


def test_wandb_not_installed_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks a module that cannot be imported
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmjax\[wandb\]'"):
        Metrics(tmp_path, 0, {"project": "p"})


def test_wandb_resumes_under_the_same_id(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    wandb = types.SimpleNamespace(init=lambda **arguments: started.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 7):
        with Metrics(tmp_path, step, {"project": "p"}) as writer:
            writer.write(step + 1, {"loss": 0.5})
    assert started[0]["id"] == started[1]["id"] and started[1]["resume"] == "allow"
    assert started[0]["project"] == "p"
    assert logged == [(1, {"loss": 0.5}), (8, {"loss": 0.5})]


class Clock:
    """Stands in for the time module; tests move it by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(metrics.time, "perf_counter", lambda: self.now)


def test_timer_adds_up_and_begins_again(monkeypatch):
    clock, timer = Clock(monkeypatch), Timer()
    for seconds in (1.0, 2.5):
        with timer:
            clock.now += seconds
        clock.now += 10
    assert timer.take() == 3.5
    assert timer.take() == 0.0


def test_rates_and_time_left(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress("sft", total=100, step=10, stream=stream) as progress:
        clock.now += 50  # compiling
        progress.update(11, loss=2.0, tokens=100, slots=200, waited=5.0)
        clock.now += 40
        rates = progress.update(31, loss=1.23456, tokens=480_000, slots=640_000, waited=10.0)
    assert rates == {
        "tokens_per_second": 12000.0, "slots_per_second": 16000.0, "steps_per_second": 0.5, "loader_wait": 0.25,
    }  # fmt: skip
    assert stream.getvalue().splitlines() == [
        "sft 11/100 | loss 2.0000 | 2 tokens/s in 4 slots/s | loader 10% | left ?",
        "sft 31/100 | loss 1.2346 | 12.0k tokens/s in 16.0k slots/s | loader 25% | left 02:18",
    ]


def test_plain_lines_come_now_and_then_and_at_the_end(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress("sft", total=100, step=0, stream=stream)
    for step in range(1, 101):
        clock.now += 1
        progress.update(step, 1.0, 1, 1, 0.0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [
        "1/100", "31/100", "61/100", "91/100", "100/100",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress("pretrain", total=10, step=4, stream=stream) as progress:
        progress.update(6, loss=0.5, tokens=1, slots=2, waited=0.0)
    shown = stream.getvalue().split("\r")[-1]
    assert "pretrain 6/10 |" in shown and "loss 0.5000" in shown and "tokens/s" in shown and "left ?" in shown


def test_compilations_are_counted():
    triple = jax.jit(lambda x: 3 * x)
    a, b = jnp.ones(5), jnp.ones(7)
    before = compilations()
    jax.block_until_ready(triple(a))
    assert compilations() == before + 1
    jax.block_until_ready(triple(a))
    assert compilations() == before + 1  # nothing new to compile
    jax.block_until_ready(triple(b))
    assert compilations() == before + 2  # another shape


def test_lines_of_another_shape_are_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('[1]\n7\n{"loss": 1}\n{"step": "2"}\n{"step": 1, "loss": 1}\n')
    Metrics(tmp_path, 2, None).close()
    assert lines(tmp_path) == [{"step": 1, "loss": 1}]


def test_a_full_disk_is_one_error(tmp_path):
    """Of metrics.jsonl; what TensorBoard's file has no room for either does not hide it."""
    refused = r"metrics.jsonl: cannot be written to \(File too large\). Make room"
    with pytest.raises(UserError, match=refused), Metrics(tmp_path, 0, None) as writer:
        for file in (tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()):
            with file.open("ab") as opened:
                opened.truncate(ROOM - 10)
        with full_disk():
            writer.write(1, {"loss": 0.5})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboards_full_disk_is_told_and_nobody_waits(tmp_path):
    with Metrics(tmp_path, 0, None) as writer:
        (events,) = (tmp_path / "tensorboard").iterdir()
        with full_disk(), pytest.raises(UserError, match=r"tensorboard: cannot be written to. Make room"):
            for step in range(1, 200):  # far more points than its thread would take unasked
                writer.write(step, {f"{i}{'x' * 30_000}": 1.0 for i in range(3)})
                (tmp_path / "metrics.jsonl").unlink()
                time.sleep(0.01)
    assert events.exists()


def test_a_folder_that_cannot_be_written():
    refused = pytest.raises(UserError, match=r"run: cannot be made a folder \(Permission denied\)")
    with other_folder() as folder, read_only(folder), refused:
        Metrics(folder / "run", 0, None)
