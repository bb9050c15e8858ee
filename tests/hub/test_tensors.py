"""Safetensors in and out, one tensor at a time; what is damaged or none is refused by name."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, SafetensorsWriter, Spec

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.kernel": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "b": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
    "c": np.array(3.5, np.float16),
    "d": np.arange(6, dtype=np.int64).reshape(2, 3),
    "empty": np.zeros((0, 4), np.float32),
}
SPECS = {name: Spec(array.shape, array.dtype) for name, array in ARRAYS.items()}


def write(folder, **options):
    with SafetensorsWriter(folder, SPECS, **options) as writer:
        for name in reversed(ARRAYS):
            if name == "a.kernel":
                for i in (2, 0, 1):
                    writer.put(name, ARRAYS[name][i], i)
            else:
                writer.put(name, ARRAYS[name])
    return folder


@pytest.mark.parametrize("shard_bytes", [10**9, 100])
def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path, shard_bytes):
    folder = write(tmp_path / "out", shard_bytes=shard_bytes)
    files = sorted(folder.glob("*.safetensors"))
    assert files[0].name == ("model.safetensors" if shard_bytes > 100 else "model-00001-of-00002.safetensors")
    assert (folder / "model.safetensors.index.json").exists() == (len(files) > 1)
    theirs = {name: array for file in files for name, array in safetensors.numpy.load_file(file).items()}
    ours = SafetensorsFolder(folder)
    assert set(theirs) == set(ours.specs) == set(ARRAYS)
    for name, array in ARRAYS.items():
        for found in (theirs[name], ours.read(name)):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(ours.read("a.kernel", 1), ARRAYS["a.kernel"][1])
    assert not list(folder.glob("*.partial"))


def test_an_error_or_a_gap_leaves_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match=r"a.kernel: \(4, 4\) instead of \(4, 5\)"),
        SafetensorsWriter(tmp_path, SPECS) as writer,
    ):
        writer.put("a.kernel", np.zeros((4, 4)), 0)
    with (
        pytest.raises(ValueError, match="3 tensors were not"),
        SafetensorsWriter(tmp_path, SPECS) as writer,
    ):
        writer.put("b", ARRAYS["b"])
    assert not list(tmp_path.iterdir())


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def _header_longer_than_the_file(file):
    file.write_bytes(struct.pack("<Q", 10**6) + file.read_bytes()[8:])


def _header_of_exabytes(file):
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])


def _pickle(file):
    file.write_bytes(pickle.dumps({"a": 1}))


def _zero_bytes(file):
    file.write_bytes(b"")


def _overlapping(file):
    header = {name: dict(dtype="F32", shape=[2], data_offsets=[0, 8]) for name in "xy"}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))


def _shape_beyond_the_data(file):
    text = json.dumps({"x": dict(dtype="F32", shape=[10**6], data_offsets=[0, 8])}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


@pytest.mark.parametrize(
    "tamper",
    [
        _truncate,
        _header_longer_than_the_file,
        _header_of_exabytes,
        _pickle,
        _zero_bytes,
        _overlapping,
        _shape_beyond_the_data,
    ],
)
def test_a_tampered_file_is_refused_by_name(tmp_path, tamper):
    tamper(write(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* `git lfs pull` brings the file"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"x": "../secret.safetensors"}, "lies outside the folder"),
        ({"x": "/etc/passwd"}, "lies outside the folder"),
        ({"x": "gone.safetensors"}, "the shard gone.safetensors is missing"),
        ([1], "is no index"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, weight_map, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder(tmp_path)


def test_a_folder_of_pickles_is_refused_unopened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        SafetensorsFolder(tmp_path / "nowhere")


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)
