"""Keys of records, turns and parts: read, refused with a remedy, or named at the start of a run."""

import json
import logging

import pytest
import tokenizers
import transformers
from materials import conversation, picture, spec_of, write_folder

from mmjax.build import section
from mmjax.data.chat import Chat
from mmjax.data.pipeline import make_dataset
from mmjax.data.prepare import texts
from mmjax.data.quarantine import BadRecord
from mmjax.data.records import read_record
from mmjax.data.spec import DataSpec
from mmjax.data.tokenizer import HFTokenizer
from mmjax.types import Turn

ASKED, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
PICTURE = {"type": "image_url", "image_url": {"url": "0.png"}}
LOOPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<image>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "0.png").write_bytes(picture())
    return tmp_path.resolve()


@pytest.fixture
def read(root):
    return lambda **record: read_record(json.dumps(record).encode(), "f.jsonl:7", root)


@pytest.fixture(scope="module")
def peer():
    """A byte-level tokenizer of transformers."""
    words = [*SPECIALS, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    model = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(SPECIALS)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(folder)
    return HFTokenizer(folder / "tokenizer.json", eos="<|im_end|>", names={"eos_token": "<|im_end|>"})


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [
        ("weight", 0.25, 0.25),
        ("loss_weight", 0, 0.0),
        ("loss_scale", 0.5, 0.5),
        ("loss", False, 0.0),
        ("loss_mask", 1, 1.0),
        ("loss_mask", 0, 0.0),
        ("train", False, 0.0),
        ("training", False, 0.0),
        ("masked", True, 0.0),
        ("masked", 1, 0.0),
        ("masked", False, 1.0),
        ("masked", None, 1.0),
    ],
)
def test_what_a_reply_weighs_by_any_trainers_name(key, value, weight, read):
    sample = read(messages=[ASKED, SAID | {key: value}])
    assert [turn.weight for turn in sample.turns] == [1.0, weight] and not sample.unread


@pytest.mark.parametrize(
    "turn", [{"masked": True}, {"loss_mask": 0}, {"masked": None, "thinking": "", "tools": []}]
)
def test_a_question_may_say_that_it_is_not_learned(turn, read):
    assert read(messages=[ASKED | turn, SAID]).turns[1] == Turn("assistant", "A")


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"mask": 0}, "the key 'mask': .*write 'weight'"),
        ({"Mask": True}, "the key 'Mask': .*write 'weight'"),
        ({"masked": 0.5}, "'masked' of a turn must be true or false, not 0.5"),
        ({"masked": True, "weight": 0}, "both 'weight' and 'masked'"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
            "'train_detail': a reply has one",
        ),
        (
            {"reasoning_content": "Because."},
            "'reasoning_content': thoughts are not read: write them into the reply",
        ),
        ({"thinking": "Because."}, "'thinking': thoughts are not read"),
        ({"tool_calls": [{}]}, "tools are not read"),
        ({"label": "quality:4"}, "'label': judgements are not read"),
        ({"chosen": "B"}, "'chosen': preferences are not read"),
        ({"loss_wieght": 0}, "did you mean 'loss_weight'"),
    ],
)
def test_keys_of_a_turn_that_change_what_is_learned(turn, reason, read):
    with pytest.raises(BadRecord, match=reason) as caught:
        read(id=3, messages=[ASKED, SAID | turn])
    assert caught.value.id == "f.jsonl:7:3"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"mask": "User"}, "the key 'mask': what is learned stands in the replies"),
        ({"loss_weight": 0.5}, "'loss_weight': what is learned"),
        ({"train": False}, "'train': what is learned"),
        ({"label": False}, "'label': judgements"),
        ({"kto_tag": True}, "'kto_tag': judgements"),
        ({"rejected_response": "B"}, "preferences"),
        ({"system_prompt": "S"}, "'system_prompt': the system prompt of a record is its 'system'"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "a chat template gets no arguments"),
        ({"objects": {"bbox": [[1, 2, 3, 4]]}, "messages": [ASKED, SAID | {"content": "<bbox>"}]}, "'objects'"),
        (
            {"objects": {"ref": ["cat"]}, "messages": [ASKED | {"content": "Where is <ref-object>?"}, SAID]},
            "'objects': write its boxes and names into the texts",
        ),
        ({"messages": [ASKED, SAID | {"content": [{"type": "text", "text": "A", "train": False}]}]}, "'train'"),
        ({"messages": [ASKED, SAID | {"content": [{"type": "text", "text": "A", "weight": 0}]}]}, "cut the turn"),
        (
            {"messages": [{"role": "user", "content": [PICTURE, {"type": "image", "source": "0.png"}]}]},
            "is not read",
        ),
    ],
)
def test_keys_of_a_record_and_of_parts_that_change_what_is_learned(record, reason, read):
    with pytest.raises(BadRecord, match=reason):
        read(**{"messages": [ASKED, SAID]} | record)


def test_shares_that_leave_all_as_it_is(read):
    sample = read(weight=1, train=True, masked=False, objects={"bbox": [[1]]}, messages=[ASKED, SAID])
    assert sample.turns == (Turn("user", "Q"), Turn("assistant", "A"))
    assert sample.unread == ("'weight'", "'train'", "'masked'", "'objects'")


def test_keys_of_every_level_are_named_with_their_counts(tmp_path, words, caplog):
    url = {"url": "0-0.png", "detail": "low", "mime": None}
    said = [
        {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "name": "bot", "content": [{"type": "text", "text": "A", "annotations": [1]}]},
        ASKED | {"name": "Ann"},
        SAID,
    ]
    records = [{"messages": said, "source": "web"}] * 2 + [
        conversation(0),
        {"messages": [ASKED | {"name": "Bo"}, SAID]},
    ]
    path = write_folder(tmp_path, records)
    with caplog.at_level(logging.WARNING):
        dataset(path, words)
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    named = "'name' in turns (of 3), 'source' (of 2), 'detail' in image_url (of 2), 'annotations' in parts (of 2)."
    assert line == f"Source 'main': keys of records that are not read: {named}"


def dataset(path, tokenizer, **changes):
    spec = spec_of(path, length=128) | changes
    settings = dict(span=4, splice=True, rows=None, seed=0, data_dir="", quarantine=f"{path}.quarantine")
    return make_dataset(spec, tokenizer, **settings)


@pytest.mark.parametrize(
    "text", [r"Is \<image> a tag?", r"\<image>", r"a \<image>" + "\n" + r"\<image> b", r"\\<image>"]
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_text_means_the_same_with_and_without_pictures(text, role, read, tokenizer):
    turns = [{"role": role, "content": text}] + [ASKED, SAID] * (role != "assistant") + [ASKED] * (role == "user")
    turns = [{"role": "user", "content": "<image>\nQ"}, SAID, *turns] if role != "system" else turns
    if role == "system":
        turns[1] = {"role": "user", "content": "<image>\nQ"}
    pictured = read(messages=turns, image="0.png")
    blind = [turn | {"content": turn["content"].removeprefix("<image>\n")} for turn in turns]
    chat = Chat("jinja:" + PLAIN, tokenizer, 1, True)
    shown = chat.tokenizer.decode(chat.encode(pictured).tokens)
    assert "".join(shown.split()) == "".join(
        chat.tokenizer.decode(chat.encode(read(messages=blind)).tokens).split()
    )
    assert text.replace(r"\<image>", "<image>") in shown


def test_a_system_key_is_a_text_like_a_system_turn(read):
    for text in (r"\<image> is a tag", "Be brief."):
        turn = read(messages=[{"role": "system", "content": text}, ASKED, SAID])
        assert read(system=text, messages=[ASKED, SAID]).turns == turn.turns


def test_escaped_words_of_records_without_pictures_are_plain(read, tmp_path):
    said = r"write \<image> or <image>"
    sample = read(messages=[ASKED, SAID | {"content": said}])
    assert sample.turns[1].text == "write <image> or <image>"
    path = write_folder(tmp_path, [{"messages": [ASKED, SAID | {"content": said}]}])
    spec = section(DataSpec, spec_of(path, template="text"), "data")
    assert list(texts(spec, ""))[1] == "write <image> or <image>"


@pytest.mark.parametrize(
    "parts",
    [
        ["one", "two"],
        ["one ", " two\n", "\nthree"],
        ["", "one", ""],
        [None, "one", "two"],
        ["one", None, "two", "", "three"],
        ["one", "", None],
        [r"a \<image> b", None],
        [r"a \<image> b"],
    ],
)
def test_parts_are_joined_as_transformers_joins_them(parts, read, peer, tokenizer):
    shown = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    sample = read(messages=[{"role": "user", "content": shown}, SAID], images=["0.png"] * (None in parts))
    messages = [
        {"role": "user", "content": shown},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    want = peer.apply_chat_template(messages, chat_template=LOOPS, tokenize=False)
    pieces = dict(add_special_tokens=False)
    # A word <image> in a text is letters here, a token to transformers, which cannot tell.
    if not any("<image>" in part for part in parts if part):
        assert (
            Chat("jinja:" + LOOPS, tokenizer, 1, True).encode(sample).tokens.tolist()
            == peer(want, **pieces).input_ids
        )
    else:
        found = Chat("jinja:" + LOOPS, tokenizer, 1, True).encode(sample).tokens
        assert r"a \<image> b" in tokenizer.decode(found)
    if None not in parts and not any("<image>" in part for part in parts):
        messages = [{"role": "user", "content": "".join(parts)}, SAID]
        want = peer.apply_chat_template(messages, chat_template=PLAIN, tokenize=False)
        assert (
            Chat("jinja:" + PLAIN, tokenizer, 1, True).encode(sample).tokens.tolist()
            == peer(want, **pieces).input_ids
        )
