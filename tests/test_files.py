"""Files on disks that refuse, and files that a killed process left."""

import json

import pytest
from small_disk import ROOM, full_disk, other_folder, read_only

from mmjax.data.quarantine import BadRecord, Quarantine
from mmjax.errors import UserError
from mmjax.files import append_lines, check_writable, json_lines, write_text
from mmjax.workdir.kept import copy_tokenizer


def test_a_read_only_folder():
    with other_folder() as folder:
        check_writable(folder)
        assert not list(folder.iterdir())
        with read_only(folder):
            refused = rf"{folder}\S*: cannot be written to \(Permission denied\). Get the right"
            for write in (
                lambda: check_writable(folder),
                lambda: write_text(folder / "a", "x"),
                lambda: append_lines(folder / "a", ["x"]),
                lambda: Quarantine(folder / "quarantine.jsonl", {"main": 1}, 0.1),
            ):
                with pytest.raises(UserError, match=refused):
                    write()


def test_a_full_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    write_text(file, "old")
    with full_disk(), pytest.raises(UserError, match=r"/a: cannot be written to \(File too large\). Make room"):
        write_text(file, "x" * (ROOM + 1))
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_line_that_found_no_room_is_not_joined_to_the_next(tmp_path):
    log = tmp_path / "quarantine.jsonl"
    bad = Quarantine(log, {"main": 9}, 1.0)
    append_lines(log, ["x" * (ROOM - 60)])
    with full_disk(), pytest.raises(UserError, match=r"quarantine.jsonl: cannot be written to"):
        bad.add("main", BadRecord("1", "damaged"))
    assert log.stat().st_size == ROOM
    append_lines(log, [json.dumps(dict(id="2")), json.dumps(dict(id="3"))])
    assert [line["id"] for line in json_lines(log)] == ["2", "3"]


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    file = tmp_path / "a.jsonl"
    assert list(json_lines(file)) == []
    file.write_bytes(b'{"a": 1}\n[2]\n3\n\n\xff\n' + b"[" * 100_000 + b'\n{"a": "\xe2\x80\xa8"}\n{"a": 5')
    assert list(json_lines(file)) == [{"a": 1}, {"a": "\u2028"}]


def test_a_tokenizer_that_finds_no_room_leaves_nothing(tmp_path):
    given, workdir = tmp_path / "big.model", tmp_path / "run"
    given.write_bytes(bytes(ROOM + 1))
    with full_disk(), pytest.raises(UserError, match=r"run/big\.model: cannot be written to \(File too large\)"):
        copy_tokenizer(dict(path=str(given)), workdir)
    assert not list(workdir.iterdir())
