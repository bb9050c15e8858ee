"""What a run refuses is told apart by stage and split, and counted on when it is started again."""

import json

import pytest
from tiny_run import config, write_data

from mmjax.data.quarantine import TooManyBadRecords
from mmjax.training.run import prepare

SPLITS = [("pretrain", "train"), ("pretrain", "valid"), ("sft", "train"), ("sft", "valid")]


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-30])  # found when it is decoded
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "valid.jsonl").write_text("\n".join(["{", *lines[:12]]) + "\n")
    return tmp_path


def start(folder, **changes):
    """The data of each stage and split, as a run opens them."""
    raw = config(folder)
    valid = raw["sft"]["data"] | dict(
        sources=dict(main=dict(path=str(folder / "valid.jsonl"), root="", weight=1.0))
    )
    raw = config(folder, valid=dict(data=valid, every=1))
    for stage in raw["stages"]:
        raw[stage]["data"] |= changes
    run = prepare(raw, folder / "run")
    return {(stage, split): run.data(run.config.stage(stage), split) for stage, split in SPLITS}


def log(folder):
    lines = (folder / "run" / "quarantine.jsonl").read_text().splitlines()
    return sorted((entry["stage"], entry["split"], entry["id"]) for entry in map(json.loads, lines))


def counts(opened):
    return [opened[part].quarantine.counts()["main"] for part in SPLITS]


def test_a_second_start_counts_what_the_first_refused(folder):
    first = start(folder)
    assert counts(first) == [0, 1, 0, 1]
    for r in range(len(first["sft", "train"])):
        first["sft", "train"].row(r)
    assert counts(first) == [0, 1, 1, 1]
    refused = [("pretrain", "valid", "valid.jsonl:1"), ("sft", "train", "train.jsonl:3:square-2")]
    refused += [("sft", "valid", "valid.jsonl:1")]
    assert log(folder) == refused

    path = folder / "run" / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + b'{"stage": "sft", "sp')  # the process was killed in the midst of a line
    second = start(folder)
    assert counts(second) == [0, 1, 1, 1] and log(folder) == refused

    # One more picture is one too many, although this start has refused no other.
    (folder / "4.png").write_bytes(b"")
    third = start(folder, max_refused=0.03)  # of 36 records: one
    (folder / "4.png").unlink()
    with pytest.raises(TooManyBadRecords, match="2 of 36 records"):
        for r in range(len(third["sft", "train"])):
            third["sft", "train"].row(r)
