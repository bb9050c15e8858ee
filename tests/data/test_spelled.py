"""Special tokens in replies: tokens where their source lists them, as transformers has them; else letters."""

import dataclasses
import json
import logging

import pytest
import tokenizers
import transformers
from materials import picture, spec_of, write_folder

from mmjax.data.chat import Chat
from mmjax.data.pipeline import make_dataset
from mmjax.data.records import read_record
from mmjax.data.tokenizer import HFTokenizer
from mmjax.errors import UserError
from mmjax.types import Turn

BOX = ["<|box_start|>", "<|box_end|>"]
SPECIALS = ["<image>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", *BOX, "<|wide|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REPLIES = [
    "cat<|box_start|>(1,2),(3,4)<|box_end|>",
    "<|box_start|>(1,2)<|box_end|> and <|box_start|><|box_end|>.",
    "no box",
    "wide  <|wide|>  space<|box_start|>",
    "<tool_call>x</tool_call><|box_end|>",
    "<<|box_start|>>",
]


@pytest.fixture(scope="module")
def peer():
    words = [*SPECIALS, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    model = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(SPECIALS[:-1])
    model.add_special_tokens([tokenizers.AddedToken("<|wide|>", lstrip=True, rstrip=True, special=True)])
    model.add_tokens([tokenizers.AddedToken("<tool_call>", special=False, normalized=False)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(folder)
    return HFTokenizer(folder / "tokenizer.json", eos="<|im_end|>", names={"eos_token": "<|im_end|>"})


@pytest.fixture(params=["chatml", "jinja:" + CHATML], ids=["named", "jinja"])
def chat(request, tokenizer):
    return lambda names=(*BOX, "<|wide|>", "<tool_call>"): Chat(
        request.param, tokenizer, 1, True, special_tokens=names
    )


def sample(*replies, asked="find", **record):
    turns = [
        turn
        for reply in replies
        for turn in (dict(role="user", content=asked), dict(role="assistant", content=reply))
    ]
    return read_record(json.dumps(dict(messages=turns) | record).encode(), "f:1", record.pop("root", None)), turns


@pytest.mark.parametrize("reply", REPLIES)
def test_listed_tokens_are_those_that_transformers_writes(reply, chat, peer):
    given, turns = sample(reply, "then " + reply)
    want = peer(peer.apply_chat_template(turns, chat_template=CHATML, tokenize=False), add_special_tokens=False)
    prompt = peer.apply_chat_template(turns[:1], chat_template=CHATML, tokenize=False, add_generation_prompt=True)
    begin = len(peer(prompt, add_special_tokens=False).input_ids)
    found = chat().encode(given)
    ids = want.input_ids
    assert (
        found.tokens.tolist() == ids[: len(found)] and len(ids) - len(found) <= 1
    )  # a line's end behind the last
    end = ids.index(peer.eos_token_id, begin) + 1
    assert found.loss_weight[:end].tolist() == [0.0] * begin + [1.0] * (end - begin)
    again = chat().encode_prompt(given.turns[:3]).tokens.tolist()
    assert again == found.tokens.tolist()[: len(again)], "an earlier reply stands in a prompt as in training"


def test_what_is_not_listed_and_what_users_say_stays_letters(chat, tokenizer):
    reply = REPLIES[0]
    given, _ = sample(reply, asked=reply)
    for names, count in (((), 0), (BOX[:1], 1), (BOX, 2)):
        tokens = chat(names).encode(given).tokens.tolist()
        assert sum(tokens.count(tokenizer.special(name)) for name in BOX) == count
        shown = tokenizer._model.decode(tokens, skip_special_tokens=False)
        assert shown.count(reply) == 2


def test_a_reply_of_weight_0_and_a_picture_beside_tokens(chat, tokenizer):
    given, _ = sample(REPLIES[0], REPLIES[0])
    turns = (
        Turn("user", "<image>\nfind"),
        dataclasses.replace(given.turns[1], weight=0.0),
        given.turns[2],
        Turn("assistant", r"<|box_start|>\<image><|box_end|>"),
    )
    found = chat().encode(dataclasses.replace(given, turns=turns, images=(picture(),)))
    boxes = [i for i, token in enumerate(found.tokens) if token == tokenizer.special("<|box_start|>")]
    assert found.loss_weight[boxes].tolist() == [0.0, 1.0]
    assert found.tokens.tolist().count(tokenizer.special("<image>")) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("<|box_star|>", r"no token '<\|box_star\|>'; did you mean '<\|box_start\|>'"),
        ("", "no token ''"),
        ("<|im_end|>", "ends a reply"),
        ("<image>", "stands where a picture does"),
    ],
)
def test_what_may_not_be_listed(name, reason, tmp_path, tokenizer):
    path = write_folder(tmp_path, [dict(messages=sample("A")[1])])
    with pytest.raises(UserError, match=r"data\.sources\.main\.special_tokens: .*" + reason):
        dataset(path, tokenizer, special_tokens=[*BOX, name])


def dataset(path, tokenizer, **source):
    spec = spec_of(path, sources=dict(main=dict(path=path, root="", weight=1.0) | source), length=256)
    settings = dict(span=4, splice=True, rows=None, seed=0, data_dir="", quarantine=f"{path}.quarantine")
    return make_dataset(spec, tokenizer, **settings)


def test_the_start_names_what_replies_spell_once_a_source(tmp_path, tokenizer, caplog):
    records = [dict(messages=sample(*REPLIES[:2], "<|im_end|>", asked="<|wide|>")[1])] * 3
    path = write_folder(tmp_path, records)
    with caplog.at_level(logging.WARNING):
        dataset(path, tokenizer)
        dataset(path, tokenizer, special_tokens=BOX[:1])
        dataset(path, tokenizer, special_tokens=BOX)
    said = [record.getMessage() for record in caplog.records if "special tokens" in record.getMessage()]
    start = "Source 'main': replies spell special tokens, which are read as letters: "
    assert said == [
        start + "'<|box_start|>' (9 times), '<|box_end|>' (9 times), '<|im_end|>' (3 times). "
        "sources.main.special_tokens=['<|box_start|>', '<|box_end|>'] makes them tokens.",
        start + "'<|box_end|>' (9 times), '<|im_end|>' (3 times). "
        "sources.main.special_tokens=['<|box_start|>', '<|box_end|>'] makes them tokens.",
        start + "'<|im_end|>' (3 times).",
    ]
