"""LLaVA's format, what is refused in it, and that no picture outside its folder can be named."""

import json
import pickle

import pytest
from materials import conversation, picture, write_folder

from mmjax.data.quarantine import BadRecord
from mmjax.data.sources import open_source
from mmjax.types import Turn


def test_jsonl_and_json_give_the_same_samples(tmp_path):
    records = [conversation(0), conversation(1, turns=2, pictures=2), conversation(2, pictures=0)]
    lines = open_source(write_folder(tmp_path, records))
    (tmp_path / "data.json").write_text(json.dumps(records))
    listed = open_source(str(tmp_path / "data.json"), root=str(tmp_path))
    assert len(lines) == len(listed) == 3
    for index in range(3):
        assert lines[index].turns == listed[index].turns
        assert lines[index].images == listed[index].images
    assert lines[0].turns[0] == Turn("user", "<image>\nwhat colour is shape 0?")
    assert [path.name for path in lines[1].images] == ["1-0.png", "1-1.png"]
    assert lines[1].id == "data.jsonl:2:r1"
    assert pickle.loads(pickle.dumps(lines))[1] == lines[1]


def test_one_picture_may_be_a_plain_name(tmp_path):
    record = conversation(0)
    source = open_source(write_folder(tmp_path, [record]))
    (tmp_path / "one.jsonl").write_text(json.dumps(record | {"image": "0-0.png"}) + "\n")
    assert open_source(str(tmp_path / "one.jsonl"))[0].images == source[0].images


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": ["../secret.png"]}, "leaves"),
        ({"image": ["sub/../../secret.png"]}, "leaves"),
        ({"image": ["/etc/hostname"]}, "is absolute"),
        ({"image": ["C:\\secret.png"]}, "is absolute"),
        ({"image": ["link.png"]}, "leaves"),
        ({"image": ["linked/secret.png"]}, "leaves"),
        ({"image": ["none.png"]}, "there is no picture 'none.png'"),
        ({"image": ["."]}, "there is no picture"),
        ({"image": ["a\x00b"]}, "null"),
        ({"image": ["x" * 5000]}, "cannot be followed|there is no picture"),
        ({"image": [7]}, "path must be a text, not 7"),
        ({"image": {"a": 1}}, "path must be a text, not {'a': 1}"),
        ({"conversations": "hi"}, "must be a list of turns"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "role 'robot' is not read"),
        ({"conversations": [{"value": "x"}]}, "role None is not read"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "must be a text"),
    ],
)
def test_refused_records(tmp_path, change, reason):
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "data"
    path = write_folder(folder, [conversation(0), conversation(1) | change])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    source = open_source(path)
    assert source[0].id == "data.jsonl:1:r0"
    with pytest.raises(BadRecord, match=reason) as caught:
        source[1]
    assert caught.value.id == "data.jsonl:2:r1" and caught.value.line


def test_a_link_that_stays_inside_is_followed(tmp_path):
    path = write_folder(tmp_path, [conversation(0)])
    (tmp_path / "0-0.png").rename(tmp_path / "real.png")
    (tmp_path / "0-0.png").symlink_to("real.png")
    assert open_source(path)[0].images[0].name == "real.png"


@pytest.mark.parametrize("line", ['{"id": 1, "conv', "[1, 2]", "\udcff".encode("utf-8", "surrogateescape")])
def test_a_line_that_does_not_parse_names_its_place(tmp_path, line):
    path = write_folder(tmp_path, [conversation(0)])
    with open(path, "ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    source = open_source(path)
    assert len(source) == 2 and source[0].turns
    with pytest.raises(BadRecord, match=r"data.jsonl:2: is no"):
        source[1]


def test_files_that_cannot_be_opened_are_explained(tmp_path):
    (tmp_path / "broken.json").write_text("[{]")
    (tmp_path / "object.json").write_text("{}")
    for path, error, reason in (
        ("broken.json", ValueError, "not valid JSON"),
        ("object.json", ValueError, "no list of records"),
        ("none.jsonl", FileNotFoundError, "no file"),
        ("x.csv", ValueError, "neither"),
    ):
        with pytest.raises(error, match=reason):
            open_source(str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'"):
        open_source(write_folder(tmp_path / "a", []), root="nowhere")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("corpus:easy_vqa", "CONFIG/SPLIT"),
        ("corpus:easyvqa/captions/train", "did you mean 'easy_vqa'"),
        ("corpus:easy_vqa/caption/train", "did you mean 'captions'"),
    ],
)
def test_mistyped_corpora_are_suggested(tmp_path, path, reason):
    with pytest.raises(ValueError, match=reason):
        open_source(path, data_dir=str(tmp_path))


def test_a_corpus_that_is_not_built_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="mmjax prepare"):
        open_source("corpus:easy_vqa/captions/train", data_dir=str(tmp_path))
