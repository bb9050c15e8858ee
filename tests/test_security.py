"""The claims of SECURITY.md, each tried: a workdir from elsewhere runs no code and reads nothing else."""

import ast
import copy
import json
import os
import pickle
import struct
import sys
import time
import zlib

import pytest
from tiny_run import ROOT, config, mmjax

import mmjax as package
from mmjax.config import read_config
from mmjax.convert import convert, export_adapter
from mmjax.data.image import ImageError, ImageOptions, decode
from mmjax.data.sandbox import Template, TemplateError
from mmjax.data.templates import open_template
from mmjax.errors import UserError
from mmjax.evaluation.run import evaluate
from mmjax.files import json_object
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder
from mmjax.inference.load import load
from mmjax.workdir import load_config


@pytest.fixture
def raw(tmp_path):
    """The config of a workdir whose tokenizer is in it, with every section that names a part."""
    raw = config(tmp_path)
    raw["sft"]["valid"] = dict(every=1, data=copy.deepcopy(raw["sft"]["data"]))
    raw["evaluation"] = dict(
        captions=dict(
            type="evaluation.benchmarks.captions.evaluate", test="corpus:openmoji/names/test", question="",
            limit=1, examples=0,
        )
    )  # fmt: skip
    return raw


@pytest.fixture
def save(raw, tmp_path):
    """A function that writes the config, changed at a path, as the workdir's; returns the workdir."""

    def save(*keys, to=None):
        node = raw
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        if keys:
            node[keys[-1]] = to
        workdir = tmp_path / "run"
        workdir.mkdir(exist_ok=True)
        (workdir / "tokenizer.model").touch()
        (workdir / "config.json").write_text(json.dumps(raw))
        return workdir

    return save


PLACES = (
    ("model", "backbone"),
    ("model", "encoders", "image"),
    ("model", "encoders", "a/b"),
    ("model", "projectors", "image"),
    ("tokenizer",),
    ("sft", "data", "media", "views"),
    ("sft", "valid", "data", "media", "views"),
    ("sft", "losses", "next_token"),
    ("sft", "losses", "another"),
    ("evaluation", "captions"),
    ("model",),
    ("model", "backbone", "mlp"),
    ("sft", "optimizer"),
    ("sft", "data", "sources", "main"),
)
NAMES = (
    "subprocess.Popen",
    "os.system",
    "posix.system",
    "builtins.exec",
    "runpy.run_path",
    "evil_parts.Part",
    "evil_parts",
    "encoders.evil_parts.Part",
    "mmjax.cli.os.system",
    "cli.sys.exit",
    "data.image.os.system",
    "training.checkpoint.json.loads",
    "hub.tensors.SafetensorsWriter",
    "data.tokenizer.train_sentencepiece",
    "data.sources.open_source",
    "evaluation.run.evaluate",
    "encoders.vit.nn.Module",
    "encoders.vit.Norm",
    "encoders.vit.VARIANTS",
    "objectives.language.jax.jit",
    "objectives.forward.Forward",
    "projectors.mlp.__builtins__",
    "backbones.decoder._write",
    "data.views.math.sqrt",
    "data.views.Any",
    "evaluation.benchmarks.captions.open_source",
    "__main__.__loader__",
    "..os.system",
    ".os.system",
    "os..system",
    "",
    None,
    5,
    ["os.system"],
    {"type": "os.system"},
)


@pytest.mark.parametrize("keys", PLACES, ids=".".join)
def test_no_name_of_a_workdir_is_looked_up_outside(keys, save, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "evil_parts.py").write_text(f"open({str(ran)!r}, 'w')\nclass Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in NAMES:
        dotted = isinstance(name, str) and "." in name
        if dotted or (keys in PLACES[:10] and name is not None):
            with pytest.raises(UserError):
                load_config(save(*keys, to={"type": name, "args": ["touch", str(ran)], "command": f"touch {ran}"}))
    time.sleep(0.1)
    assert not ran.exists() and "evil_parts" not in sys.modules


@pytest.mark.parametrize("name", ["evil_parts/x/y", "evil_parts.birds/x/y", "os.path/x/y", "../evil_parts/x/y"])
@pytest.mark.parametrize(
    "keys", [("evaluation", "captions", "test"), ("sft", "data", "sources", "main", "path")], ids=".".join
)
def test_a_corpus_of_a_workdir_imports_nothing(keys, name, save, tmp_path, monkeypatch):
    (tmp_path / "evil_parts.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    workdir = save(*keys, to=f"corpus:{name}")
    if name == "evil_parts/x/y":  # one of mmjax, which does not exist
        load_config(workdir)
    else:
        with pytest.raises(UserError, match="corpus"):
            load_config(workdir)
    assert "evil_parts" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command",
    [load, package.load, evaluate, lambda run: convert(run, run.parent / "to"),
     lambda run: export_adapter(run, run.parent / "to")],
    ids=["load", "mmjax.load", "evaluate", "convert", "convert --adapter"],
)  # fmt: skip
def test_every_reader_of_a_workdir_refuses(command, save, tmp_path):
    ran = tmp_path / "ran"
    workdir = save("model", "encoders", "image", to={"type": "subprocess.Popen", "args": ["touch", str(ran)]})
    with pytest.raises(UserError, match=r"model\.encoders\.image\.type: 'subprocess\.Popen' is not in mmjax"):
        command(workdir)
    time.sleep(0.2)
    assert not ran.exists()


PART = """
import os
from subprocess import Popen
import flax.linen as nn

class Part(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)
"""


def test_a_package_that_the_user_trusts_is_found(save, tmp_path, monkeypatch):
    (tmp_path / "trusted_parts.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    place = ("model", "projectors", "image", "type")
    with pytest.raises(UserError, match="--trust trusted_parts"):
        load_config(save("model", "projectors", "image", to=dict(type="trusted_parts.Part")))
    assert "trusted_parts" not in sys.modules
    for other in ("trusted", "trusted_parts.Part.Inner", "other"):
        with pytest.raises(UserError):
            load_config(save(), trust=(other,))
    assert "trusted_parts" not in sys.modules
    assert (
        load_config(save(), trust=("trusted_parts",)).model["projectors"]["image"]["type"] == "trusted_parts.Part"
    )
    for name in ("trusted_parts.Popen", "trusted_parts.os.system", "trusted_parts.nn.Module", "trusted_parts.os"):
        with pytest.raises(UserError):
            load_config(save(*place, to=name), trust=("trusted_parts",))
    with pytest.raises(UserError, match="one name"):
        load_config(save(), trust="trusted_parts")


def test_trust_is_named_on_the_command_line(save, tmp_path):
    (tmp_path / "trusted_parts.py").write_text("raise SystemExit('imported')\n")
    workdir = save("model", "projectors", "image", to=dict(type="trusted_parts.Part"))
    for flags, said in ((), "--trust trusted_parts"), (("--trust=trusted_parts",), "imported"):
        output, _ = mmjax("chat", "--workdir", workdir, *flags, cwd=tmp_path).communicate(timeout=300)
        assert said in output and "Traceback" not in output, output


def test_every_lookup_by_name_says_its_room():
    """Each call of build, bind and resolve in mmjax names the room that such parts of mmjax stand in."""
    calls = []
    for file in sorted((ROOT / "mmjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name in ("build", "bind", "resolve"):
                said = len(node.args) == 3 or any(keyword.arg == "room" for keyword in node.keywords)
                calls.append((str(file.relative_to(ROOT / "mmjax")), name, said))
    anywhere = {call for call in calls if not call[2]}
    assert anywhere == {("workdir/trust.py", "resolve", False)}  # which looks at what is found by itself
    assert len(calls) > 8


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("sft", "data", "template"), "file:/etc/passwd"),
        (("sft", "data", "template"), "file:../secret"),
        (("sft", "data", "sources", "main", "template"), "file:~/secret"),
        (("pretrain", "data", "template"), "file:run/link"),
        (("tokenizer", "path"), "/etc/passwd"),
        (("tokenizer", "path"), "../secret"),
        (("tokenizer", "path"), "run/link"),
        (("tokenizer", "path"), ".."),
        (("tokenizer", "path"), "run"),
    ],
)
def test_a_workdir_is_read_by_itself(keys, value, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("secret")
    workdir = save(*keys, to=value)
    (workdir / "link").symlink_to(tmp_path / "secret")
    before = sorted(workdir.iterdir())
    with pytest.raises(UserError, match=r"outside the workdir|names no file"):
        load(workdir)
    assert sorted(workdir.iterdir()) == before


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "..", ".", "", "a/b", "a\\b", "a\0b", 5, None])
def test_a_stage_is_a_folder_of_the_workdir(name, save, raw):
    raw["stages"] = ["pretrain", name]
    raw[str(name)] = copy.deepcopy(raw["sft"])
    with pytest.raises(UserError, match="stages"):
        load_config(save())


def test_a_pickle_is_never_loaded_whatever_its_name(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name in ("model.safetensors", "model.gguf", "pytorch_model.bin"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointError):
            SafetensorsFolder(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("announced", [2**62, 2**40, 10**6])
def test_a_header_cannot_announce_more_than_its_file_holds(announced, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", announced) + b"{}")
    with pytest.raises(CheckpointError, match="no whole safetensors"):
        SafetensorsFolder(tmp_path)
    header = json.dumps({"x": dict(dtype="F32", shape=[announced], data_offsets=[0, 4 * announced])}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="no whole safetensors"):
        SafetensorsFolder(tmp_path)


def test_a_picture_is_refused_by_its_header():
    options = ImageOptions(size=8, resize="stretch", max_pixels=1_000_000)
    size = struct.pack(">II", 60_000, 60_000)
    chunk = b"IHDR" + size + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(ImageError, match="limit"):
        decode(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")), options)


def test_json_is_bounded(tmp_path):
    file = tmp_path / "config.json"
    with file.open("wb") as out:
        out.truncate(65 << 20)
    with pytest.raises(UserError, match="at most"):
        json_object(file)
    for text in ("[" * 100_000, '{"a":' * 100_000, "[]", "{", "", "\ufeff{}", '{"a": ' + "1" * 5000 + "}"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            json_object(file)
    nested = 0
    for _ in range(200):
        nested = {"a": nested}
    file.write_text(json.dumps(nested))
    with pytest.raises(UserError, match="deep"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("sft", "steps"), "many", r"sft\.steps: 'many' is not of type int"),
        (("sft", "batch"), 0, r"sft\.batch: 0 is below 1"),
        (("sft", "batch"), 2.0, r"sft\.batch: 2\.0 is not of type int"),
        (("sft", "batch"), True, r"sft\.batch: True is not of type int"),
        (("mesh",), [1], r"config\.mesh: \[1\] is not of type Mapping"),
        (("model",), None, r"config\.model: None is not of type Mapping"),
        (("sft",), None, r"stage 'sft' has no section"),
        (("stages",), "sft", r"config\.stages: 'sft' is not of type list"),
        (("precision", "compute_dtype"), "float31", r"precision\.compute_dtype: no 'float31'; did you mean"),
        (("sft", "lora"), [["x", dict(rank="8", alpha=1)]], r"sft\.lora\.x\.rank: '8' is not of type int"),
        (("keep",), 0, "keep: 0 is below 1"),
        (("sft", "valid"), dict(evry=1), r"sft\.valid: no key 'evry'; did you mean 'every'"),
    ],
)
def test_values_of_another_type_are_named(keys, value, said, raw):
    node = raw
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    with pytest.raises(UserError, match=said):
        read_config(raw)


def test_a_hostile_template_reaches_nothing_and_ends():
    begun = time.perf_counter()
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
    ):
        with pytest.raises((TemplateError, UserError)):
            Template(open_template("jinja:" + source)).render(messages=[])
    assert time.perf_counter() - begun < 60
