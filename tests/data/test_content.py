"""A run that resumes notices data that were edited to the same lengths."""

import json
import shutil

import pytest
from materials import conversation, picture, spec_of, write_folder

from mmjax.data.content import BLOCK, _picture
from mmjax.data.pipeline import make_dataset


def records():
    return [conversation(number, turns=2) for number in range(6)]


def dataset(path, tokenizer, weights=(1.0,), **changes):
    sources = {f"s{k}": dict(path=str(path), root="", weight=weight) for k, weight in enumerate(weights)}
    spec = spec_of(path, length=128, sources=sources) | changes
    settings = dict(span=4, splice=True, rows=8, seed=0, data_dir="", quarantine=f"{path}.quarantine")
    return make_dataset(spec, tokenizer, **settings)


def another_answer(found, folder):
    found[3]["conversations"][1]["value"] = "blue blue blur"


def another_question(found, folder):
    found[3]["conversations"][2]["value"] = "what colour is shape 4?"


def another_weight(found, folder):
    found[3]["conversations"][1]["weight"] = 0.5


def another_order(found, folder):
    found[0], found[1] = found[1], found[0]


def another_name(found, folder):
    found[2]["image"], found[4]["image"] = found[4]["image"], found[2]["image"]


def another_picture(found, folder):
    shutil.copy(folder / "1-0.png", folder / "5-0.png")


@pytest.mark.parametrize(
    "edit", [another_answer, another_question, another_weight, another_order, another_name, another_picture]
)
def test_an_edit_to_the_same_lengths_is_noticed(edit, tmp_path, words):
    path = write_folder(tmp_path, records())
    before = dataset(path, words)
    edited = records()
    edit(edited, tmp_path)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, edited)))
    after = dataset(path, words)
    assert after.plan.fingerprint == before.plan.fingerprint, "the lengths are another"
    assert not after.continues(before.fingerprint) and before.continues(before.fingerprint)
    assert after.continues(before.plan.fingerprint), "old runs have kept order and lengths alone"


def test_the_weights_of_sources_count(tmp_path, words):
    path = write_folder(tmp_path, records())
    found = [dataset(path, words, weights=weights) for weights in ((1.0, 1.0), (1.0, 2.0))]
    assert not found[1].continues(found[0].fingerprint) and not found[1].continues(found[0].plan.fingerprint)


def test_folders_names_keys_and_threads_are_no_content(tmp_path, words):
    one = dataset(write_folder(tmp_path / "a", records()), words)
    moved = [record | {"id": n, "note": "x"} for n, record in enumerate(records())]
    for record in moved:
        record["image"] = ["pictures/" + name for name in record["image"]]
    path = write_folder(tmp_path / "b", moved)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "pictures")
    assert dataset(path, words, threads=3).continues(one.fingerprint)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK, 3 * BLOCK + 1, 100 * BLOCK])
def test_a_picture_counts_by_its_size_and_its_beginning_middle_and_end(size, tmp_path):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    (tmp_path / "a.png").write_bytes(data)
    found = {_picture(data)}
    assert _picture(tmp_path / "a.png") == _picture(data)
    for place in {0, size // 2, size - 1} if size else ():
        found.add(_picture(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]))
    found.add(_picture(data + b"x"))
    assert len(found) == 2 + len({0, size // 2, size - 1} if size else ())
    assert len(_picture(data)) <= 3 * BLOCK + 20


def test_a_picture_that_cannot_be_read_is_no_error(tmp_path):
    assert _picture(tmp_path / "none.png") == b"" != _picture(picture())
