"""State dicts in torch's format before 1.6: the tensors of torch.load; whatever else is in a file is not run."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from mmjax.hub.legacy_torch import HEADER, MAGIC, VERSION, LegacyTorchFile
from mmjax.hub.tensors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8]
DTYPES += [torch.uint8, torch.bool]
ORDERED = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"


def save(path, state):
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def words(*numbers):
    return b"".join(b"J" + struct.pack("<i", number) for number in numbers)


def text(characters):
    return b"X" + struct.pack("<I", len(characters)) + characters.encode()


def tensor(shape, strides, offset=0, count=6, storage=FLOATS, key="0"):
    """The opcodes of a tensor."""
    place = b"(" + text("storage") + storage + text(key) + text("cpu") + words(count) + b"NtQ"
    return REBUILD + b"(" + place + words(offset) + b"(" + words(*shape) + b"t(" + words(*strides) + b"t\x89)tR"


def written(path, state, keys=("0",), storages=((6, 24),)):
    """A file whose state dict is of these opcodes. storages: numbers announced, bytes that there are."""
    head = b"".join(pickle.dumps(one, protocol=2) for one in (MAGIC, VERSION, {"little_endian": True}))
    rest = b"".join(struct.pack("<q", count) + bytes(size) for count, size in storages)
    path.write_bytes(head + b"\x80\x02" + state + b"." + pickle.dumps(list(keys), protocol=2) + rest)
    return path


def one(opcodes):
    """A state dict of one entry, 'w'."""
    return ORDERED + text("w") + opcodes + b"s"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_those_of_torch(dtype, tmp_path):
    drawn = torch.randint(0, 2 if dtype == torch.bool else 100, (2, 3, 4, 5)).to(dtype)
    state = {
        "whole": drawn,
        "part": drawn[1],
        "axes": drawn.permute(2, 0, 3, 1),
        "channels_last": drawn.contiguous(memory_format=torch.channels_last),
        "ones": drawn[:, :1, :1].contiguous().permute(1, 3, 0, 2),
        "scalar": drawn[0, 0, 0, 0],
        "empty": drawn[:0],
    }
    file = LegacyTorchFile(save(tmp_path / "a.pth", state))
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(file.specs) == list(expected)
    for name, value in expected.items():
        found = file.read(name)
        assert found.dtype == file.specs[name].dtype == value.numpy().dtype
        assert found.shape == file.specs[name].shape
        np.testing.assert_array_equal(found, value.numpy(), err_msg=name)
    np.testing.assert_array_equal(file.read("axes", 3), expected["axes"][3].numpy())


def test_a_modules_state_dict(tmp_path):
    """With versions of its modules, a storage that two names share, buffers, and bfloat16."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module[1].to(torch.bfloat16)
    state = module.state_dict()
    file = LegacyTorchFile(save(tmp_path / "a.pth", state))
    assert hasattr(state, "_metadata") and set(file.specs) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(file.read(name).astype(np.float64), value.double().numpy())
    assert file.specs["1.weight"].dtype == "bfloat16"
    assert file._places["0.weight"] == file._places["2.weight"]


def test_every_cut_is_noticed(tmp_path):
    whole = save(tmp_path / "a.pth", {"w": torch.arange(6.0), "v": torch.arange(3)}).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "a.pth").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.pth: "):
            LegacyTorchFile(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="No such file"):
        LegacyTorchFile(tmp_path / "none.pth")


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "reduce": (lambda mark: one(b"cposix\nsystem\n(" + text(mark) + b"tR"), "posix system"),
    "global": (lambda mark: one(b"cos\nsystem\n"), "holds a Global as 'w'"),
    "stack_global": (
        lambda mark: one(text("os") + text("system") + b"\x93(" + text(mark) + b"tR"),
        "STACK_GLOBAL",
    ),
    "inst": (lambda mark: one(b"(" + text(mark) + b"ios\nsystem\n"), "opcode INST"),
    "obj": (lambda mark: one(b"(cos\nsystem\n" + text(mark) + b"o"), "opcode OBJ"),
    "newobj": (lambda mark: one(b"cos\nsystem\n(" + text(mark) + b"t\x81"), "opcode NEWOBJ"),
    "ext": (lambda mark: one(b"\x82\x01"), "opcode EXT1"),
    "build": (lambda mark: one(b"cos\nsystem\n}b"), "opcode BUILD"),
    "ordered dict of a call": (
        lambda mark: b"ccollections\nOrderedDict\n(cposix\nsystem\n(" + text(mark) + b"tRtR",
        "posix system",
    ),
    "alike": (lambda mark: one(b"ctorch._utils _rebuild_tensor_v2\nx\n)R"), "_rebuild_tensor_v2 x"),
    "eval": (lambda mark: one(b"c__builtin__\neval\n(" + text(f"open({mark!r}, 'w')") + b"tR"), "eval"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_run(name, tmp_path):
    make, message = HOSTILE[name]
    mark = tmp_path / "mark"
    with pytest.raises(CheckpointError, match=message):
        LegacyTorchFile(written(tmp_path / "a.pth", make(f"touch {mark}")))
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_nothing_that_pickle_writes_is_run(protocol, tmp_path):
    """Not in place of the state dict, nor of what comes before and after it."""
    mark = tmp_path / "mark"
    for position in range(5):
        parts = [MAGIC, VERSION, {}, collections.OrderedDict(), []]
        parts[position] = Hostile(os.system, f"touch {mark}")
        (tmp_path / "a.pth").write_bytes(b"".join(pickle.dumps(part, protocol) for part in parts))
        with pytest.raises(CheckpointError):
            LegacyTorchFile(tmp_path / "a.pth")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(os.system, f"touch {mark}"), protocol))
    assert mark.exists()


# A tuple of twice the one before it, sixty times over: to print or hash it would take for ever.
LAUGHS = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
DAMAGED = {
    "goes beyond its storage": one(tensor((2, 3), (3, 1), offset=1)),
    "leave gaps": one(tensor((2, 2), (3, 1))),
    "or overlap": one(tensor((2, 3), (0, 1))),
    "damaged tensor": one(tensor((-2, 3), (3, 1))),
    "holds a damaged tensor": one(tensor((2, 3), (1,))),
    "its pickle holds a damaged tensor": one(REBUILD + b"(" + text("w") + b"tR"),
    "type torch SparseStorage": one(tensor((2, 3), (3, 1), storage=b"ctorch\nSparseStorage\n")),
    "tensor without a storage": one(tensor((2, 3), (3, 1), key="1") + b"s" + text("v") + tensor((6,), (1,))),
    "of two types or sizes": one(tensor((2, 3), (3, 1)) + b"s" + text("v") + tensor((6,), (1,), count=7)),
    "of another size than announced": one(tensor((2,), (1,), count=5)),
    "is cut short: it has": one(tensor((2, 3), (3, 1), count=2**30)),
    "holds a int as 'w'": one(b"K\x01"),
    "holds a list, not a dict": b"]",
    "keys are no texts": ORDERED + b"K\x01K\x02s",
    "nothing for its SETITEMS": ORDERED + b"u",
    "nothing for its BINGET": one(b"h\x07"),
    "opcode POP": one(b"N0"),
    "cut short or too long": one(b"\x8d" + struct.pack("<Q", 2**62)),
    "cut short or too long: ": one(b"X" + struct.pack("<I", 2**32 - 1)),
    "damaged, cut short or too long": one(text("x" * HEADER)),
    "holds a tuple as 'w'": one(LAUGHS),
    "whose keys are no texts": ORDERED + LAUGHS + b"K\x01s",
    "holds a damaged storage": one(tensor((6,), (1,), storage=LAUGHS)),
    "call of what is no function": one(LAUGHS + b")R"),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_what_is_damaged_is_refused(message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as raised:
        LegacyTorchFile(written(tmp_path / "a.pth", DAMAGED[message]))
    assert len(str(raised.value)) < 600


def test_an_empty_tensor_of_any_shape_takes_no_memory(tmp_path):
    file = LegacyTorchFile(written(tmp_path / "a.pth", one(tensor((0, 2**20, 2**20), (1, 1, 1)))))
    assert file.read("w").shape == (0, 2**20, 2**20)
    with pytest.raises(CheckpointError, match="damaged tensor"):
        LegacyTorchFile(written(tmp_path / "a.pth", one(tensor((0, *[2**30] * 3), (1,) * 4))))


def test_other_formats_are_told_apart(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"zip format.*safetensors"):
        LegacyTorchFile(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(pickle.dumps(3, protocol=2))
    with pytest.raises(CheckpointError, match=r"no file of torch\.save"):
        LegacyTorchFile(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="header"):
        LegacyTorchFile(tmp_path / "a.pth")
