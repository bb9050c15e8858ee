"""A converted workdir that is moved, or copied: it talks, trains in place and elsewhere, and is exported."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import transformers
from parity import randomise, save
from test_text_families import GROUPED

import mmjax
from mmjax.convert import convert
from mmjax.inference.chat import Sampling
from mmjax.training.stages import train

# A folder's name, which a Python file must not take in as code.
HOSTILE = 'hf"""; raise SystemExit("a name has become code"); """\\'


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A workdir that was converted under another name, and the folder that it came from."""
    folder = tmp_path_factory.mktemp("moved")
    model = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True)))
    source = folder / HOSTILE
    save(model, source)
    convert(source, folder / "first")
    shutil.move(folder / "first", folder / "later")
    return folder / "later", source


def config_of(workdir, records):
    """What `--config WORKDIR/config.py` gives, for a step on a few records."""
    spec = importlib.util.spec_from_file_location("converted_config", workdir / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    raw = module.get_config().to_dict()
    raw["sft"]["data"] |= dict(workers=0, threads=1, length=32, template="bare")
    raw["sft"]["data"]["sources"]["main"]["path"] = str(records)
    raw["sft"] |= dict(batch=1, steps=1, save_every=1, log_every=1)
    raw["sft"]["optimizer"] |= dict(warmup=0, lr=0.01)
    return raw | dict(mesh=dict(data=1))


@pytest.fixture
def records(tmp_path):
    turns = [{"from": "human", "value": "w1 w2"}, {"from": "gpt", "value": "w3 w4"}]
    (tmp_path / "records.jsonl").write_text(json.dumps(dict(id="one", conversations=turns)) + "\n")
    return tmp_path / "records.jsonl"


def talks(workdir):
    return mmjax.load(workdir)("w1 w2", sampling=Sampling(max_new=3))


def test_no_file_of_a_converted_workdir_names_its_place(moved):
    for name in ("config.json", "config.py"):
        text = (moved[0] / name).read_text()
        assert str(moved[0].parent) not in text and "become code" not in text
    assert talks(moved[0])


@pytest.mark.parametrize("in_place", [True, False])
def test_it_trains_and_is_exported_after_another_move(moved, records, tmp_path, in_place):
    """In place, or in a workdir of its own, which must then be all that the export takes."""
    workdir = shutil.copytree(moved[0], tmp_path / "copy")
    target = workdir if in_place else tmp_path / "run"
    train(config_of(workdir, records), target)
    text = talks(target)
    shutil.move(target, tmp_path / "moved-again")
    shutil.rmtree(workdir, ignore_errors=True)
    assert talks(tmp_path / "moved-again") == text
    convert(tmp_path / "moved-again", tmp_path / "back")
    ours, theirs = (safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path / "back", moved[1]))
    assert ours.keys() == theirs.keys()
    assert any(not np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (moved[1] / "tokenizer.json").read_bytes()


def test_it_goes_on_after_a_move(moved, records, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "copy")
    train(config_of(workdir, records), workdir)
    shutil.move(workdir, tmp_path / "moved-again")
    config = (tmp_path / "moved-again" / "config.json").read_bytes()
    raw = config_of(tmp_path / "moved-again", records)
    train(raw, tmp_path / "moved-again")
    assert (tmp_path / "moved-again" / "config.json").read_bytes() == config


def test_a_converted_workdir_trains_no_other_model(moved, records):
    raw = config_of(moved[0], records)
    raw["model"]["backbone"]["width"] = 64
    with pytest.raises(ValueError, match=r"model.backbone.width: 32 before, 64 now"):
        train(raw, moved[0])
