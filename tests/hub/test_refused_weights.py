"""Weights that are not known here are refused in one short message: what they are, and the remedy."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from parity import save
from small_models import small_model
from test_gguf import write

from mmjax.convert import convert
from mmjax.hub.tensors import CheckpointError


def refused(source, tmp_path):
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return str(error.value)


@pytest.mark.parametrize("part", [None, "text_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_quantised_weights_by_config(tmp_path, method, part):
    folder = save(small_model("llama"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    said = dict(quantization_config=dict(quant_method=method, bits=4))
    (folder / "config.json").write_text(json.dumps(config | ({part: said} if part else said)))
    message = refused(folder, tmp_path)
    assert f"quantised ({method})" in message and "save_pretrained" in message and "\n" not in message


@pytest.mark.parametrize("suffix", ["qweight", "scales", "weight_scale", "weight_scale_inv", "weight.absmax"])
def test_quantised_weights_by_tensors(tmp_path, suffix):
    folder = save(small_model("llama"), tmp_path / "hf")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    more = {f"model.layers.{i}.mlp.up_proj.{suffix}": np.zeros(4, np.int32) for i in range(50)}
    safetensors.numpy.save_file(tensors | more, folder / "model.safetensors")
    message = refused(folder, tmp_path)
    assert "quantised weights" in message and "save_pretrained" in message
    assert message.count(suffix) == 20 and "and 30 more" in message


def test_a_message_about_many_tensors_lists_twenty(tmp_path):
    folder = save(small_model("llama"), tmp_path / "hf")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    more = {f"odd.{i:03}": np.zeros(1, np.float32) for i in range(300)}
    safetensors.numpy.save_file(tensors | more, folder / "model.safetensors")
    message = refused(folder, tmp_path)
    assert len(re.findall(r"odd\.\d+", message)) == 20 and message.endswith("and 280 more")


@pytest.mark.parametrize("number", [0, 2])
def test_a_part_of_a_split_gguf_names_the_others(tmp_path, number):
    names = [f"model-{i + 1:05}-of-00003.gguf" for i in range(3)]
    split = {"split.count": 3, "split.no": number}
    matrix = np.zeros((4, 32), np.float32)
    write(tmp_path / names[number], [("token_embd.weight", matrix)], split.items())
    message = refused(tmp_path / names[number], tmp_path)
    assert all(name in message for name in names)
    assert f"llama-gguf-split --merge {names[0]}" in message


def test_a_split_gguf_of_many_parts_is_one_short_message(tmp_path):
    write(tmp_path / "m-00001-of-09999.gguf", (), {"split.count": 9999, "split.no": 0}.items())
    message = refused(tmp_path / "m-00001-of-09999.gguf", tmp_path)
    assert message.count(".gguf") < 30 and "and 9,978 more" in message
