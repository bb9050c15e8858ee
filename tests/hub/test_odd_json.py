"""JSON files of a checkpoint with other content than they should have: one message, with the file and a remedy."""

import json
import shutil

import pytest
from prompt_folders import published

from mmjax.convert import convert
from mmjax.hub.family import FAMILIES, find_family
from mmjax.hub.tensors import CheckpointError

ODD = ([], 3, None, [None], {"a": 1}, [{"x": 1}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hf")
    published("LLaVA-1.5", made)
    return made


def refusal(folder, tmp_path, file, content):
    """What `mmjax convert` says of a copy of the folder with this file in it; '' where it takes it."""
    shutil.copytree(folder, tmp_path / "hf")
    (tmp_path / "hf" / file).write_text(json.dumps(content))
    try:
        convert(tmp_path / "hf", tmp_path / "run")
    except CheckpointError as error:
        assert str(tmp_path / "hf") in str(error), error  # no copy elsewhere
        return str(error)
    finally:
        shutil.rmtree(tmp_path / "hf")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return ""


WHOLE = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "adapter_config.json",
]


@pytest.mark.parametrize("file", WHOLE)
def test_a_file_that_holds_no_object(folder, file, tmp_path):
    for odd in ([], 3, None, "x"):
        assert f"{file}: holds no JSON object" in refusal(folder, tmp_path, file, odd), odd


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "text_config"),
        ("config.json", "vision_config"),
        ("config.json", "quantization_config"),
        ("preprocessor_config.json", "size"),
        ("preprocessor_config.json", "image_mean"),
        ("processor_config.json", "image_processor"),
        ("processor_config.json", "chat_template"),
        ("generation_config.json", "eos_token_id"),
        ("generation_config.json", "stop_strings"),
        ("tokenizer_config.json", "eos_token"),
        ("tokenizer_config.json", "chat_template"),
        ("tokenizer_config.json", "added_tokens_decoder"),
        ("tokenizer_config.json", "extra_special_tokens"),
        ("special_tokens_map.json", "additional_special_tokens"),
        ("added_tokens.json", "<more>"),
        ("tokenizer.json", "added_tokens"),
        ("tokenizer.json", "model"),
    ],
)
def test_a_key_that_holds_something_else(folder, file, key, tmp_path):
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    said = [refusal(folder, tmp_path, file, before | {key: odd}) for odd in ODD]
    assert any(said) or key in ("eos_token_id", "stop_strings"), "all of it is taken"
    for message in filter(None, said):
        assert len(message) < 1200, message


@pytest.mark.parametrize("index", [[], 3, {}, {"weight_map": 3}, {"weight_map": [1]}, {"weight_map": {"a": 3}}])
def test_an_index_of_another_shape(folder, index, tmp_path):
    shutil.copytree(folder, tmp_path / "of-shards")
    (tmp_path / "of-shards" / "model.safetensors").unlink()
    message = refusal(tmp_path / "of-shards", tmp_path, "model.safetensors.index.json", index)
    assert "model.safetensors.index.json: is no index of shards" in message and "Download it again" in message


def test_lists_of_names_end(tmp_path):
    with pytest.raises(CheckpointError, match=rf"known: llama, .*and {len(FAMILIES) - 20} more"):
        find_family({"model_type": "none"}, "config.json")
