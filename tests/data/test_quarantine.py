"""The log of refused records: what it says, whose records it counts, and what it keeps over a restart."""

import json
import pickle

import pytest

from mmjax.data.quarantine import BadRecord, Quarantine, TooManyBadRecords


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_record_counts_once_over_processes(tmp_path):
    log = tmp_path / "run" / "quarantine.jsonl"
    first = Quarantine(log, {"a": 10, "b": 10}, max_refused=0.2, stage="sft", split="train")
    second = pickle.loads(pickle.dumps(first))  # as another process has it
    first.add("a", BadRecord("r1", "bad", "line"))
    second.add("a", BadRecord("r1", "bad", "line"))
    second.add("a", BadRecord("r2", "worse"))
    assert first.counts() == second.counts() == {"a": 2, "b": 0}
    entry = dict(stage="sft", split="train", source="a", id="r1", reason="bad", line="line", measured=False)
    assert lines(log)[0] == entry and len(lines(log)) == 2
    with pytest.raises(TooManyBadRecords, match=r"3 of 10 records.*max_refused=0.2.*r3: worst"):
        first.add("a", BadRecord("r3", "worst"))


def test_stages_and_splits_count_apart(tmp_path):
    log = tmp_path / "quarantine.jsonl"
    parts = [("one", "train"), ("one", "valid"), ("two", "train")]
    made = [Quarantine(log, {"main": 2}, 0.5, *part) for part in parts]
    for quarantine in made:
        quarantine.add("main", BadRecord("data.jsonl:1", "bad"))
    assert [quarantine.counts() for quarantine in made] == [{"main": 1}] * 3
    assert [(entry["stage"], entry["split"]) for entry in lines(log)] == parts


def test_a_restart_counts_on_what_training_refused_and_measures_the_rest_anew(tmp_path):
    log = tmp_path / "quarantine.jsonl"
    before = Quarantine(log, {"a": 10}, 0.3, "sft")
    before.add("a", BadRecord("r1", "is not valid JSON"), measured=True)
    before.add("a", BadRecord("r2", "was mended later"), measured=True)
    before.add("a", BadRecord("r3", "cannot be decoded"))
    other = Quarantine(log, {"a": 10}, 0.2, "sft", "valid")
    other.add("a", BadRecord("r1", "is not valid JSON"), measured=True)

    after = Quarantine(log, {"a": 10}, 0.2, "sft")
    assert after.counts() == {"a": 1}
    after.add("a", BadRecord("r1", "is not valid JSON"), measured=True)
    after.add("a", BadRecord("r3", "cannot be decoded"))  # met again: the same record
    assert after.counts() == {"a": 2}
    assert sorted((entry["split"], entry["id"]) for entry in lines(log)) == [
        ("train", "r1"),
        ("train", "r3"),
        ("valid", "r1"),
    ]
    with pytest.raises(TooManyBadRecords, match="3 of 10"):
        after.add("a", BadRecord("r4", "cannot be decoded"))


def test_another_splits_restart_loses_no_count(tmp_path):
    log = tmp_path / "quarantine.jsonl"
    Quarantine(log, {"a": 9}, 1.0, "sft", "valid").add("a", BadRecord("v" * 99, "x"), measured=True)
    train = Quarantine(log, {"a": 9}, 1.0, "sft")
    train.add("a", BadRecord("r1", "bad"), measured=True)
    worker = pickle.loads(pickle.dumps(train))
    Quarantine(log, {"a": 9}, 1.0, "sft", "valid")  # drops its own line: the file is shorter than train has read
    worker.add("a", BadRecord("r2", "bad"))
    assert train.counts() == worker.counts() == {"a": 2}


@pytest.mark.parametrize(
    "tail", [b'{"stage": "", "split": "tr', b"\xff\xfe\n", b"[]\n", b"[" * 5000 + b"\n", b'{"id": 1}\n']
)
def test_a_damaged_line_is_passed_over(tmp_path, tail):
    log = tmp_path / "quarantine.jsonl"
    Quarantine(log, {"a": 10}, 1.0).add("a", BadRecord("r1", "bad"))
    log.write_bytes(log.read_bytes() + tail)
    after = Quarantine(log, {"a": 10}, 1.0)
    after.add("a", BadRecord("r2", "bad"))
    assert after.counts() == {"a": 2} and [entry["id"] for entry in lines(log)] == ["r1", "r2"]


def test_a_long_reason_is_cut(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", {"a": 1}, 1.0)
    quarantine.add("a", BadRecord("r1", "x" * 100_000, "y" * 100_000))
    (entry,) = lines(tmp_path / "quarantine.jsonl")
    assert len(entry["reason"]) == len(entry["line"]) == 1000
