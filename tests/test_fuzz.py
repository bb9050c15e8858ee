"""Damaged copies of small real files, by the thousand: their readers end in an error that names what is wrong, in
bounded time and memory, and touch nothing else. `make test-all` tries more of them."""

import copy
import io
import json
import resource
import struct
import time
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_run import config, write_data
from transformers import AutoConfig

from mmjax.config import build_model
from mmjax.data.image import FORMATS, ImageOptions, decode, upright_size
from mmjax.data.quarantine import BadRecord
from mmjax.data.sources import open_source
from mmjax.errors import UserError
from mmjax.hub.family import FAMILIES
from mmjax.hub.folder import HubFolder
from mmjax.hub.gguf_model import GGUFModel
from mmjax.hub.tensors import SafetensorsFolder
from mmjax.training.step import find_losses
from mmjax.workdir import load_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged tags
SECONDS = 5.0  # that one file may take
MEBIBYTES = 600  # that all files of a test may take together
ODD = (
    None, True, 0, -1, 3, 1.5, 10**9, 2**63, 10**30, float("nan"), float("inf"), "", "x", "\ud800", "a.b", "../..",
    "/etc/passwd", "os.system", "file:/etc/passwd", "corpus:os.path/x/y", [], {}, [[]], [1, "x"],
    {"type": "os.system"},
)  # fmt: skip


@pytest.fixture(params=[pytest.param(1, id="short"), pytest.param(30, id="long", marks=pytest.mark.slow)])
def times(request):
    """How many times as many files as a short run reads."""
    return request.param


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes with one to three changes: bits, numbers, pieces lost, doubled or put elsewhere, the end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        begin = int(rng.integers(len(data) + 1))
        end = min(len(data), begin + int(rng.choice([1, 4, 8, 64])))
        kind = rng.integers(6)
        if kind == 0 and begin < len(data):
            data[begin] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            number = int(rng.choice([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**62]))
            data[begin : begin + 8] = struct.pack("<Q", number)
        elif kind == 2:
            del data[begin:end]
        elif kind == 3:
            data[begin:begin] = data[begin:end]
        elif kind == 4:
            data[begin:end] = rng.bytes(end - begin)
        elif len(data) > 1:
            del data[int(rng.integers(1, len(data))) :]
    return bytes(data)


def changed(rng: np.random.Generator, value: dict) -> dict:
    """A JSON object with one or two values that are odd, missing, or another's; or under another key."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 3)):
        places = list(_places(value))
        node, key = places[rng.integers(len(places))]
        kind = rng.integers(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            other, its = places[rng.integers(len(places))]
            if other is node or its in other:
                node[key] = copy.deepcopy(other[its]) if its in range(len(other)) or its in other else None
        elif kind == 2 and isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        else:
            node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return value


def _places(node):
    """(container, key) of every value below."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def survive(read: Callable[[], object], what: str) -> bool:
    """Whether a reader takes what it is given: it ends at once, in a result or a UserError."""
    begun = time.perf_counter()
    try:
        read()
    except UserError:
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} escapes: {error}\nof {what[:3000]}") from error
    finally:
        assert time.perf_counter() - begun < SECONDS, f"takes too long: {what[:3000]}"
    return True


@pytest.fixture(autouse=True)
def untouched(tmp_path):
    """Files beside the folder that is read stay as they are, and memory stays small."""
    (tmp_path / "run").mkdir()
    (tmp_path / "sentinel").write_text("here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sentinel"]
    assert (tmp_path / "sentinel").read_text() == "here"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures(kind, times):
    options = ImageOptions(size=8, resize="pad", max_pixels=1_000_000)
    rng, file = np.random.default_rng(0), io.BytesIO()
    picture = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(file, kind, exif=exif) if kind in ("PNG", "JPEG", "WEBP") else picture.save(file, kind)
    good = file.getvalue()
    assert survive(lambda: decode(good, options), kind)
    taken = 0
    for _ in range(60 * times):
        bad = damaged(rng, good)
        taken += survive(lambda bad=bad: decode(bad, options), repr(bad))
        survive(lambda bad=bad: upright_size(bad, options), repr(bad))
    assert taken < 60 * times


def read_all(tensors):
    for name in tensors.specs:
        tensors.read(name)


def test_safetensors(tmp_path, times):
    file = tmp_path / "run" / "model.safetensors"
    save_file({"a": np.ones((3, 4), np.float32), "b": np.arange(5), "c": np.ones((2, 2), np.float16)}, file)
    good, rng = file.read_bytes(), np.random.default_rng(0)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    taken = 0
    for i in range(300 * times):
        bad = damaged(rng, good)
        if i % 2:
            text = json.dumps(changed(rng, header)).encode()
            bad = struct.pack("<Q", len(text)) + text + good[-76:]
        file.write_bytes(bad)
        taken += survive(lambda: read_all(SafetensorsFolder(tmp_path / "run")), repr(bad))
    assert 0 < taken < 300 * times


def test_gguf(tmp_path, times):
    file = tmp_path / "run" / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in dict(embedding_length=8, block_count=1, feed_forward_length=16, context_length=32).items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "a", "b", "ab"])
    writer.add_token_scores([0.0, -1.0, -2.0, -3.0])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    good, rng, taken = file.read_bytes(), np.random.default_rng(0), 0

    def read():
        found = GGUFModel(file)
        read_all(found.tensors)
        found.keep(tmp_path / "run" / "kept")

    assert survive(read, "the file as it was written")
    for _ in range(300 * times):
        bad = damaged(rng, good)
        file.write_bytes(bad)
        taken += survive(read, repr(bad))
    assert 0 < taken < 300 * times


def test_configs_of_workdirs(tmp_path, times):
    workdir = tmp_path / "run"
    raw = config(workdir)
    raw["sft"]["valid"] = dict(every=1, data=copy.deepcopy(raw["sft"]["data"]))
    raw["sft"]["data"]["media"]["views"] = dict(type="data.views.Whole")
    raw["evaluation"] = dict(ours=dict(type="evaluation.benchmarks.perplexity.evaluate", windows=2, length=8))
    raw["wandb"] = dict(project="x")
    (workdir / "tokenizer.model").touch()

    def read():
        found = load_config(workdir)
        for stage in found.stages:
            find_losses(stage.losses)
        build_model(found, 10)

    rng, taken, good = np.random.default_rng(0), 0, json.dumps(raw)
    for i in range(400 * times):
        text = json.dumps(changed(rng, raw)).encode() if i % 4 else damaged(rng, good.encode())
        (workdir / "config.json").write_bytes(text)
        taken += survive(read, repr(text))
    assert 0 < taken < 400 * times


@pytest.mark.parametrize("name", FAMILIES)
def test_configs_of_hub_folders(name, tmp_path, times):
    folder = tmp_path / "run"
    save_file({"a": np.ones(3, np.float32)}, folder / "model.safetensors")
    good = json.loads(AutoConfig.for_model(name).to_json_string(use_diff=False))
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')

    def read():
        found = HubFolder(folder)
        found.family.rows(found.spec)

    rng = np.random.default_rng(0)
    for _ in range(20 * times):
        text = json.dumps(changed(rng, good))
        (folder / "config.json").write_text(text)
        survive(read, text)


def test_records(tmp_path, times):
    folder = tmp_path / "run"
    write_data(folder)
    file = folder / "train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()[:4]]
    rng, refused = np.random.default_rng(0), 0

    def read():
        nonlocal refused
        source = open_source(str(file))
        for index in range(len(source)):
            try:
                source[index]
            except BadRecord:
                refused += 1

    for i in range(200 * times):
        lines = [json.dumps(changed(rng, record)).encode() for record in records]
        data = b"\n".join(lines) if i % 2 else damaged(rng, b"\n".join(json.dumps(r).encode() for r in records))
        file.write_bytes(data)
        survive(read, repr(data))
    assert refused > 100 * times
