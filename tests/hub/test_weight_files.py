"""Which files of a folder are read, and what of them is used: as `transformers` does, and nothing in silence."""

import json
import logging
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, VOCAB, assert_same_weights, batch_of, error, imported, logits, save
from safetensors.torch import load_file, save_file
from small_models import small_model

import mmjax
from mmjax.convert import convert, export_workdir, import_folder, parameter_shapes
from mmjax.data.quarantine import BadRecord
from mmjax.errors import UserError
from mmjax.hub.folder import HubFolder
from mmjax.hub.load import load_parts, open_source
from mmjax.hub.tensors import CheckpointError, SafetensorsFolder, common_dtype
from mmjax.inference.chat import Sampling
from mmjax.sharding import make_mesh, shard_tree
from mmjax.types import Sample, Turn
from mmjax.workdir import load_config

IDS = [int(i) for i in np.random.default_rng(0).integers(8, VOCAB, 24)]
ONE = {"x": torch.ones(2)}


def write(file, tensors):
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def write_index(folder, weight_map, **more):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **more}))


def rewrite(folder, change):
    """Replaces the tensors of a folder by what `change` makes of them."""
    write(folder / "model.safetensors", change(load_file(folder / "model.safetensors")))


def assert_logits_of(folder, kind, tmp_path):
    """What converts from a folder has the logits of `transformers` on it; returns the workdir."""
    model, params = imported(folder, tmp_path / "run")
    with torch.no_grad():
        theirs = kind.from_pretrained(folder).eval()(torch.tensor([IDS])).logits[0]
    assert error(logits(model, params, batch_of([[IDS]], 24))[0], theirs) < TOLERANCE
    return tmp_path / "run"


STRAY = [
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "adapter_model.safetensors",
    "model-00001-of-00002.safetensors",
    "optimizer.pt",
    "pytorch_model.bin",
    "model.gguf",
]


@pytest.mark.parametrize("name", STRAY)
def test_what_lies_beside_the_model_is_passed_over_and_named(tmp_path, caplog, name):
    write(tmp_path / "model.safetensors", ONE)
    (tmp_path / name).write_bytes(b"anything")
    with caplog.at_level(logging.WARNING):
        assert set(SafetensorsFolder(tmp_path).specs) == {"x"}
    assert name in caplog.text


def test_one_file_comes_before_an_index_and_an_index_before_the_rest(tmp_path, caplog):
    write(tmp_path / "part.safetensors", {"y": torch.ones(3)})
    write_index(tmp_path, {"y": "part.safetensors"})  # and no metadata
    write(tmp_path / "other.safetensors", {"z": torch.ones(3)})
    with caplog.at_level(logging.WARNING):
        assert set(SafetensorsFolder(tmp_path).specs) == {"y"}
    assert "other.safetensors" in caplog.text
    write(tmp_path / "model.safetensors", ONE)
    with caplog.at_level(logging.WARNING):
        assert set(SafetensorsFolder(tmp_path).specs) == {"x"}
    assert "model.safetensors.index.json" in caplog.text
    assert set(SafetensorsFolder(tmp_path, "other.safetensors").specs) == {"z"}
    with pytest.raises(CheckpointError, match=r"no file '\.\./x\.safetensors'"):
        SafetensorsFolder(tmp_path, "../x.safetensors")


@pytest.mark.parametrize(
    "name, message",
    [
        ("consolidated.safetensors", r"Mistral's own names; download model\.safetensors"),
        ("pytorch_model.bin", r"pytorch_model\.bin is a pickle.*save_pretrained"),
        ("model-00001-of-00002.safetensors", r"is a shard; download the model\.safetensors\.index\.json"),
        ("weights.safetensors", r"rename it to model\.safetensors"),
        ("README.md", "Nothing else in it holds weights"),
    ],
)
def test_a_folder_without_the_usual_files_is_refused_with_the_remedy(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder(tmp_path)


def test_a_tensor_in_two_shards_is_read_where_both_are_the_same(tmp_path):
    write_index(tmp_path, {"x": "a.safetensors", "y": "sub/b.safetensors"})
    write(tmp_path / "a.safetensors", ONE)
    write(tmp_path / "sub" / "b.safetensors", ONE | {"y": torch.zeros(1)})
    assert set(SafetensorsFolder(tmp_path).specs) == {"x", "y"}
    write(tmp_path / "sub" / "b.safetensors", {"x": torch.zeros(2), "y": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: its 'x' differs from that of a\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_two_names_of_one_tensor_are_refused(tmp_path):
    folder = save(small_model("llava"), tmp_path / "hf")
    rewrite(folder, lambda s: s | {"model.multi_modal_projector.linear_1.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match=r"both are multi_modal_projector\.linear_1\.bias"):
        HubFolder(folder)


def test_an_adapter_that_would_change_the_weights_is_refused(tmp_path):
    folder = save(small_model("llama"), tmp_path / "hf")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(CheckpointError, match=r"onto some/base\. Merge"):
        convert(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["llava", "llava_next", "paligemma", "idefics3", "internvl", "qwen2_vl"])
def test_a_head_is_tied_where_transformers_ties_it(tmp_path, name):
    model = small_model(name)
    folder = save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for top in (None, True, False):
        for text in (None, True, False):
            for section, value in ((config, top), (config["text_config"], text)):
                section.pop("tie_word_embeddings", None)
                section |= {} if value is None else dict(tie_word_embeddings=value)
            (folder / "config.json").write_text(json.dumps(config))
            theirs = type(model).from_pretrained(folder)
            tied = theirs.lm_head.weight is theirs.get_input_embeddings().weight
            assert HubFolder(folder).spec["backbone"]["tied"] == tied, (top, text)


HEADS = {
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
    "llava": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    "paligemma": ("lm_head.weight", "language_model.model.embed_tokens.weight"),
}


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "llava"])
def test_a_head_that_differs_from_the_table_it_is_tied_to_is_kept(tmp_path, caplog, name):
    head, table = HEADS[name]
    model = small_model(name)
    folder = save(model, tmp_path / "hf")
    rewrite(folder, lambda s: s | {head: s[table].flip(0).contiguous()})
    with caplog.at_level(logging.WARNING):
        workdir = assert_logits_of(folder, type(model), tmp_path)
    assert f"{head} is not {table}" in caplog.text
    export_workdir(workdir, tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False
    back = type(model).from_pretrained(tmp_path / "back")
    assert_same_weights(type(model).from_pretrained(folder), back)


def test_a_head_stands_for_a_table_that_is_missing(tmp_path):
    head, table = HEADS["llama"]
    model = small_model("llama")
    folder = save(model, tmp_path / "hf")
    rewrite(folder, lambda s: {head if name == table else name: tensor for name, tensor in s.items()})
    assert_logits_of(folder, type(model), tmp_path)


def test_what_is_left_out_is_named(tmp_path, caplog):
    head, table = HEADS["llama"]
    folder = save(small_model("llama"), tmp_path / "hf")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda s: s | {head: s[table].clone(), buffer: torch.ones(4)})
    with caplog.at_level(logging.INFO, logger="absl"):
        convert(folder, tmp_path / "run")
    assert f"tied to {table} and the same: {head}" in caplog.text
    assert "buffers that are computed here: model.layers.*.self_attn.rotary_emb.inv_freq" in caplog.text


def test_an_export_does_not_name_the_file_that_the_model_came_in(tmp_path):
    model = small_model("llama")
    folder = save(model, tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text()) | dict(transformers_weights="mine.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    export_workdir(assert_logits_of(folder, type(model), tmp_path), tmp_path / "back")
    assert_same_weights(model, type(model).from_pretrained(tmp_path / "back"))


def test_a_missing_head_that_nothing_ties_is_an_error(tmp_path):
    folder = save(small_model("llama"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | dict(tie_word_embeddings=False)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing +lm_head\.weight"):
        convert(folder, tmp_path / "run")


def test_a_head_of_a_checkpoint_is_not_dropped_for_a_model_without(tmp_path):
    head, table = HEADS["llama"]
    folder = save(small_model("llama"), tmp_path / "hf")
    import_folder(folder, tmp_path / "run")
    rewrite(folder, lambda s: s | {head: s[table].flip(0).contiguous()})
    shapes = parameter_shapes(load_config(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"surplus +lm_head\.weight"):
        load_parts([("backbone", f"hf:{folder}")], shapes, shard_tree(shapes, make_mesh({"data": 1})))


def test_a_part_of_a_whole_model_has_all_its_rows(tmp_path):
    folder = save(small_model("llava_next"), tmp_path / "hf")
    _, rows, _ = open_source(f"hf:{folder}", "projectors/image")
    assert ("newline",) in [row.ours for row in rows]


def test_layers_of_several_dtypes_become_one_that_holds_all_to_the_bit(tmp_path):
    model = small_model("llama")
    folder = save(model, tmp_path / "hf")
    half = {".layers.0.": torch.float16, ".layers.1.": torch.bfloat16, "embed_tokens": torch.bfloat16}

    def halve(state):
        dtypes = {name: next((d for part, d in half.items() if part in name), None) for name in state}
        return {name: tensor.to(dtypes[name] or tensor.dtype) for name, tensor in state.items()}

    rewrite(folder, halve)
    workdir = assert_logits_of(folder, type(model), tmp_path)
    specs = SafetensorsFolder(workdir / "weights").specs
    assert specs["backbone/layers/attention/query/kernel"].dtype == np.float32
    assert specs["backbone/embedding"].dtype == ml_dtypes.bfloat16  # uniform: as it came
    export_workdir(workdir, tmp_path / "back")
    came, back = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert came.keys() == back.keys()
    for name, tensor in came.items():
        assert torch.equal(tensor.float(), back[name].float()), name
    assert back["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    "dtypes, common",
    [
        ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), ml_dtypes.bfloat16),
        ((np.float16, ml_dtypes.bfloat16), np.float32),
        ((ml_dtypes.bfloat16, np.float32), np.float32),
        ((np.float16, np.float64), np.float64),
    ],
)
def test_the_common_dtype(dtypes, common):
    assert common_dtype(map(np.dtype, dtypes)) == np.dtype(common)


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", r"no such file or folder\. Give a folder .* a GGUF file, a workdir, .* smollm2"),
        ("text.txt", "is no GGUF file"),
        ("cut.gguf", "is no whole GGUF file"),
        ("empty", "has no config.json"),
        ("ggufs", r"has no config.json, .* to convert m\.gguf, give that file"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(tmp_path, source, message):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    for name in ("empty", "ggufs"):
        (tmp_path / name).mkdir()
    (tmp_path / "ggufs" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_target_that_cannot_be_written_to_is_an_error(tmp_path):
    folder = save(small_model("llama"), tmp_path / "hf")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file: is a file; give a new folder"):
        convert(folder, tmp_path / "file")
    with pytest.raises(CheckpointError, match="run: cannot be made: Not a directory"):
        convert(folder, tmp_path / "file" / "run")
    convert(folder, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run: is not empty; give a new folder\.$"):
        convert(folder, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()  # the last that is written: as if it had been killed before
    with pytest.raises(CheckpointError, match="did not end: delete it"):
        convert(folder, tmp_path / "run")


def test_a_conversion_that_fails_leaves_an_empty_folder_empty(tmp_path):
    folder = save(small_model("llama"), tmp_path / "hf")
    (folder / "tokenizer.json").write_text("{")
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError):
        convert(folder, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    shutil.rmtree(tmp_path / "run")


TEMPLATE = (
    "{% for m in messages %}w1 {{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %} w2 {% endfor %}{% if add_generation_prompt %}w1 assistant {% endif %}"
)


def test_tokens_beyond_the_table_stand_for_media_alone(tmp_path):
    model = small_model("llava")
    model.config.image_token_index = VOCAB + 1
    folder = save(model, tmp_path / "hf")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="w3")
    tokenizer.add_tokens(["beyond"])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<image>") == VOCAB + 1
    convert(folder, tmp_path / "run")
    assistant = mmjax.load(str(tmp_path / "run"))

    picture = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    text = tokenizer.apply_chat_template([dict(role="user", content="<image> w5 w6")], tokenize=False)
    ids = tokenizer(text.replace("<image>", "w7 w7 w7 w7") + "w1 assistant").input_ids
    encoder = assistant.model.encoders["image"]
    pixels = (picture.astype(np.float32) / 255 - np.float32(encoder.mean)) / np.float32(encoder.std)
    model.config.image_token_id = model.model.config.image_token_id = 7  # its own embedding is never read
    theirs = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        pixel_values=torch.tensor(pixels.transpose(2, 0, 1)[None]),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=3,
        pad_token_id=0,
    )[0, len(ids) :]
    ours = assistant("<image> w5 w6", picture, sampling=Sampling(max_new=8))
    assert ours.split() == tokenizer.decode([i for i in theirs.tolist() if i != 3]).split()

    with pytest.raises(UserError, match=f"token {VOCAB}, .beyond.; the model embeds only the first {VOCAB}"):
        assistant("w5 beyond", sampling=Sampling(max_new=2))
    record = Sample("r9", (Turn("user", "w5"), Turn("assistant", "beyond")))
    with pytest.raises(BadRecord, match=f"r9.* has the token {VOCAB}"):
        assistant.encoder.encode(record)
