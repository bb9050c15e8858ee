"""A folder's tokenizer: which ids begin and end texts, and its chat template, are as `transformers` takes them."""

import json

import pytest
import tokenizers
import transformers

from mmjax.build import build
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.tokenizer import template_of, tokenizer_section

WORDS = ["<s>", "</s>", "<end>", "<unk>", "one", "two", "three"]


def folder(path, post=False, **files):
    """A tokenizer.json, with bos in front of texts if `post`; and JSON files beside it."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["<s>", "</s>"])
    if post:
        model.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    model.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"eos_token": {"__type": "AddedToken", "content": "<end>"}},
        {"pad_token": "[PAD]"},
    ],
    ids=str,
)
def test_ids_of_a_text(post, more, tmp_path):
    folder(tmp_path, post, tokenizer_config=SETTINGS | more)
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begin = [] if ours.bos is None else [ours.bos]
    assert begin + ours.encode("one three")[0] == theirs("one three").input_ids
    assert ours.eos == theirs.eos_token_id
    assert {k: v for k, v in theirs.special_tokens_map.items() if v in WORDS} == ours.names
    assert ours.vocab_size == len(WORDS)


def test_every_eos_ends_a_generation(tmp_path):
    folder(
        tmp_path,
        tokenizer_config={},
        special_tokens_map={"eos_token": {"content": "</s>"}},
        config={"eos_token_id": 1, "bos_token_id": 0, "image_token_index": 4},
        generation_config={"eos_token_id": [1, 2]},
    )
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    assert (ours.stops, ours.eos, ours.bos) == ((1, 2), 1, None)
    assert ours.names == {"eos_token": "</s>", "bos_token": "<s>", "image_token": "one"}


def test_an_eos_that_the_file_does_not_flag_is_special_still(tmp_path):
    folder(tmp_path, tokenizer_config={"eos_token": "<end>"})
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    assert ours.eos == 2 and 2 not in ours.encode("one <end> two")[0] and ours.decode([4, 2]) == "one"


def test_sentencepiece_folders(tmp_path):
    from mmjax.data.tokenizer import train_sentencepiece

    train_sentencepiece(["one two three four"] * 9, tmp_path / "tokenizer.model", 280)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    assert (ours.bos, ours.eos, ours.stops) == (1, 2, (2, 5)) and ours.names["eos_token"] == "</s>"
    (tmp_path / "added_tokens.json").write_text('{"<image>": 280}')
    with pytest.raises(CheckpointError, match=r"<image>.*tokenizer\.json"):
        tokenizer_section(tmp_path, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        tokenizer_section(tmp_path, tmp_path)


def test_damaged_tokenizers(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        tokenizer_section(tmp_path, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        tokenizer_section(tmp_path, tmp_path)


def test_where_a_template_stands(tmp_path):
    assert template_of(tmp_path) == "bare"
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert template_of(tmp_path) == "jinja:D"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')
    assert template_of(tmp_path) == "jinja:J"
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert template_of(tmp_path) == "jinja:{{ x }}"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": 3}')
    with pytest.raises(CheckpointError, match="no text"):
        template_of(tmp_path)
