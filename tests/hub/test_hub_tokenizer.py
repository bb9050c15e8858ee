"""A folder's tokenizer: which ids begin and end texts, and its chat template, are as `transformers` takes them."""

import json
import re

import pytest
import sentencepiece
import tokenizers
import transformers

from mmjax.build import build
from mmjax.data.tokenizer import train_sentencepiece
from mmjax.hub.auto_tokenizer import AutoTokenizer
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
    assert theirs.special_tokens_map == ours.names
    assert ours.vocab_size == len(theirs)


DECODER = {"1": dict(content="</s>", special=True), "0": dict(content="<s>", special=True)}
CONFLICTS = {
    "a map over the settings": dict(special_tokens_map={"eos_token": "<end>", "pad_token": "one"}),
    "settings with a decoder over a map": dict(
        tokenizer_config={"added_tokens_decoder": DECODER}, special_tokens_map={"eos_token": "<end>"}
    ),
    "tokens of a map": dict(special_tokens_map={"eos_token": dict(content="<end>", lstrip=True)}),
    "extra tokens of both": dict(
        tokenizer_config={"extra_special_tokens": ["<a>"]},
        special_tokens_map={"extra_special_tokens": ["<b>", "<a>"]},
    ),
    "older extra tokens of both": dict(
        tokenizer_config={"additional_special_tokens": ["<a>"]},
        special_tokens_map={"additional_special_tokens": ["<b>"]},
    ),
    "older extra tokens of a map": dict(special_tokens_map={"additional_special_tokens": ["<b>"]}),
    "added tokens": dict(added_tokens={"<a>": 7}, special_tokens_map={"additional_special_tokens": ["<a>"]}),
    "added tokens that a decoder has otherwise": dict(
        tokenizer_config={"added_tokens_decoder": DECODER | {"7": dict(content="<b>")}}, added_tokens={"<a>": 7}
    ),
    "null in the settings": dict(tokenizer_config={"eos_token": None}, special_tokens_map={"pad_token": "two"}),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_special_tokens_of_files_that_differ(name, tmp_path):
    files = CONFLICTS[name]
    folder(tmp_path, **files | dict(tokenizer_config=SETTINGS | files.get("tokenizer_config", {})))
    made = AutoTokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    roles = ("bos", "eos", "unk", "pad")
    found = {role: made.names.get(f"{role}_token") for role in roles}
    assert found == {role: getattr(theirs, f"{role}_token") for role in roles}
    for text in ("one <a> three", "<b><end> two", " <end> one"):
        assert made.backend.encode(text).ids == theirs(text).input_ids, text
    assert made.backend.get_vocab() == theirs.get_vocab()


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


LINES = ["the quick brown fox jumps over a lazy dog says hello what is it"] * 9
TEXTS = [
    "hello  fox",
    " hi\n",
    "the cat",
    "",
    "é ☃ dog",
    "fox\n\nfox",
    "<turn>user\nhi",
    "<image> the <image>\nfox",
]
LLAMA = dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
GEMMA = dict(
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    bos_piece="<bos>",
    eos_piece="<eos>",
    add_dummy_prefix=False,
    user_defined_symbols=["<mask>", "<turn>", "\n\n"],
)


def sentencepiece_folder(path, model, model_type, **settings):
    """A tokenizer.model, trained as Llama's or Gemma's are, and settings beside it."""
    with open(path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=file,
            model_type="bpe",
            vocab_size=330,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
            **model,
        )
    names = dict(bos_token=model.get("bos_piece", "<s>"), eos_token=model.get("eos_piece", "</s>"))
    (path / "tokenizer_config.json").write_text(json.dumps(names | dict(unk_token="<unk>") | settings))
    (path / "config.json").write_text(json.dumps(dict(model_type=model_type)))


def assert_same_ids(path):
    """Ids of texts at the start of a sequence, and of texts that follow a special token."""
    ours = build(tokenizer_section(path, path), "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    begin = [] if ours.bos is None else [ours.bos]
    for text in TEXTS:
        assert begin + made(ours, text) == theirs(text).input_ids, text
        behind = theirs(theirs.bos_token + text, add_special_tokens=False).input_ids
        assert [theirs.bos_token_id, *made(ours, text, False)] == behind, text
    assert (ours.eos, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


def made(ours, text, start=True):
    """Ids of a text; a special token in it is named, as templates do."""
    ids = []
    for part in re.split("(<image>)" if "<image>" in ours.special_tokens() else r"\b\B", text):
        if part == "<image>":
            ids.append(ours.special(part))
        elif part:
            ids += ours.encode(part, start and not ids)[0]
    return ids


ADDED = {"330": dict(content="<image>", special=True, normalized=False)}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"legacy": True},
        {"legacy": False},
        {"add_prefix_space": False},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"added_tokens_decoder": ADDED},
        {"extra_special_tokens": ["<image>"]},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("model", "model_type", "named"),
    [
        (LLAMA, "llama", "LlamaTokenizer"),
        (LLAMA, "llava", "LlamaTokenizerFast"),
        (LLAMA, "mistral", "LlamaTokenizer"),
        (GEMMA, "gemma2", "GemmaTokenizer"),
        (GEMMA, "gemma3_text", ""),
    ],
)
def test_a_sentencepiece_model_is_what_transformers_makes_of_it(
    model, model_type, named, settings, fast, tmp_path
):
    named = dict(tokenizer_class=named) if named else {}
    sentencepiece_folder(tmp_path, model, model_type, **named, **settings)
    if fast:
        transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
        del saved["extra_special_tokens"]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved | named | settings))
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("named", ["CodeLlamaTokenizer", "CohereTokenizer", "CohereTokenizerFast"])
def test_a_class_that_is_not_known_is_refused_without_tokenizer_json(named, tmp_path):
    """... and with the one that the message asks for, ids are those of `transformers`."""
    sentencepiece_folder(tmp_path, LLAMA, "llama", tokenizer_class=named)
    with pytest.raises(
        CheckpointError, match=rf"no tokenizer.json, and what {named[:9]}.*save_pretrained\(FOLDER\)"
    ):
        tokenizer_section(tmp_path, tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "LlamaTokenizer", None])
def test_a_tokenizer_without_special_tokens(named, tmp_path):
    pieces = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {piece: i for i, piece in enumerate([*pieces, "th", "the"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, [("t", "h"), ("th", "e")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named} if named else {}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text).input_ids, text
    assert (ours.bos, ours.eos, ours.vocab_size) == (None, theirs.eos_token_id, len(theirs))


def test_older_files_add_tokens(tmp_path):
    sentencepiece_folder(tmp_path, LLAMA, "llama", tokenizer_class="LlamaTokenizer")
    (tmp_path / "added_tokens.json").write_text('{"<image>": 330}')
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<image>"]}')
    assert_same_ids(tmp_path)


def test_vocab_and_merges(tmp_path):
    pieces = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "th", "the", "Ġthe", "</s>", "<image>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    names = dict(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="</s>")
    added = {str(vocabulary[name]): dict(content=name, special=True) for name in ("</s>", "<image>")}
    for model_type, named in (("opt", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("phi", None)):
        settings = names | dict(add_bos_token=True, tokenizer_class=named, added_tokens_decoder=added)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps(dict(model_type=model_type)))
        assert_same_ids(tmp_path)


def test_sentencepiece_of_ours(tmp_path):
    train_sentencepiece(["one two three four"] * 9, tmp_path / "tokenizer.model", 280)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "tokenizer_class": "LlamaTokenizer"}')
    ours = build(tokenizer_section(tmp_path, tmp_path), "tokenizer")
    assert (ours.bos, ours.eos, ours.stops) == (None, 2, (2, 5)) and ours.names["eos_token"] == "</s>"
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
    assert template_of(tmp_path, processor=True) == "text"
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert template_of(tmp_path, processor=True) == "jinja:D"  # a processor without one has its tokenizer's
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert template_of(tmp_path, processor=False) == template_of(tmp_path, processor=True) == "jinja:{{ x }}"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')  # a processor's alone
    assert template_of(tmp_path, processor=True) == "jinja:J"
    assert template_of(tmp_path, processor=False) == "jinja:{{ x }}"
    (tmp_path / "chat_template.json").write_text('{"chat_template": 3}')
    with pytest.raises(CheckpointError, match="no text"):
        template_of(tmp_path, processor=True)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ x }}")
    with pytest.raises(CheckpointError, match="UTF-8"):
        template_of(tmp_path, processor=False)
