"""Records as users have them: each is taken as it is meant, or refused by its id with the reason."""

import base64
import json
import logging

import numpy as np
import pytest
from materials import conversation, picture, spec_of, write_folder

from mmjax.data.fields import LONGEST
from mmjax.data.pipeline import make_dataset
from mmjax.data.quarantine import BadRecord
from mmjax.data.records import read_record
from mmjax.data.sources import open_source
from mmjax.errors import UserError
from mmjax.types import Turn

TEXTS = [Turn("user", "Q"), Turn("assistant", "A")]
SEEN = [Turn("user", "<image>\nQ"), Turn("assistant", "A")]
MARKED = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
PLAIN = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
SHOWN = {"type": "image"}
CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.fixture
def root(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    return tmp_path.resolve()


def read(record, root):
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return read_record(text, "f.jsonl:7", root)


def asked(*content):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A"}]


def part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("record", "turns", "images"),
    [
        (dict(conversations=PLAIN), TEXTS, []),
        (dict(conversations=PLAIN, image=None), TEXTS, []),
        (dict(conversations=PLAIN, image=""), TEXTS, []),
        (dict(conversations=PLAIN, images=[], messages=None, video=None, videos=[], tools=""), TEXTS, []),
        (dict(conversations=MARKED, image="0.png"), SEEN, ["0.png"]),
        (dict(conversations=MARKED, image=["0.png"]), SEEN, ["0.png"]),
        (dict(conversations=MARKED, images=["0.png"], image=None), SEEN, ["0.png"]),
        (dict(conversations=MARKED, images="0.png"), SEEN, ["0.png"]),
        (dict(messages=CHAT), TEXTS, []),
        (dict(messages=PLAIN), TEXTS, []),
        (dict(conversations=CHAT), TEXTS, []),
        (dict(messages=[{"role": "human", "text": "Q"}, {"from": "bard", "content": "A"}]), TEXTS, []),
        (dict(messages=[{"role": "developer", "content": "S"}, *CHAT]), [Turn("system", "S"), *TEXTS], []),
        (dict(system="S", conversations=PLAIN), [Turn("system", "S"), *TEXTS], []),
        (dict(system="", conversations=PLAIN), TEXTS, []),
        (dict(messages=asked(part("Q"))), TEXTS, []),
        (dict(messages=asked(part("Q"), part(" and"))), [Turn("user", "Q and"), TEXTS[1]], []),
        (dict(messages=asked({"type": "image"}, part("Q")), images=["0.png"]), SEEN, ["0.png"]),
        (dict(messages=asked(SHOWN | {"text": None, "index": 0}, part("Q")), images=["0.png"]), SEEN, ["0.png"]),
        (dict(messages=asked({"type": "image", "image": "0.png"}, part("Q"))), SEEN, ["0.png"]),
        (dict(messages=asked({"type": "image", "path": "0.png"}, part("Q"))), SEEN, ["0.png"]),
        (dict(messages=asked({"type": "image_url", "image_url": {"url": "0.png"}}, part("Q"))), SEEN, ["0.png"]),
        (
            dict(messages=asked(SHOWN, SHOWN | {"url": "2.png"}, part("Q")), images=["1.png"]),
            [Turn("user", "<image>\n<image>\nQ"), TEXTS[1]],
            ["1.png", "2.png"],
        ),
        (
            dict(messages=[*asked(part("Q"), {"type": "image"}), *MARKED], images=["1.png", "0.png"]),
            [Turn("user", "Q\n<image>"), TEXTS[1], *SEEN],
            ["1.png", "0.png"],
        ),
        (
            dict(messages=asked({"type": "image", "image": "0.png"}, part("<image>\nQ"))),
            [Turn("user", "<image>\n\\<image>\nQ"), TEXTS[1]],
            ["0.png"],
        ),
        (
            dict(image="0.png", conversations=[{"from": "human", "value": "<image>\nA \\<image>?"}, PLAIN[1]]),
            [Turn("user", "<image>\nA \\<image>?"), TEXTS[1]],
            ["0.png"],
        ),
        (
            dict(conversations=[{"from": "human", "value": "What does <image> mean?"}, PLAIN[1]]),
            [Turn("user", "What does <image> mean?"), TEXTS[1]],
            [],
        ),
        (
            dict(conversations=[PLAIN[0], {"from": "gpt", "value": "<image>"}]),
            [TEXTS[0], Turn("assistant", "<image>")],
            [],
        ),
        (b'{"conversations": [{"from":"human","value":"a\\u2028\\u0000b"},{"from":"gpt","value":"A"}], "n": NaN}',
         [Turn("user", "a\u2028\0b"), TEXTS[1]], []),
    ],
)  # fmt: skip
def test_common_formats_are_read(record, turns, images, root):
    sample = read(record, root)
    assert list(sample.turns) == turns
    assert [path.relative_to(root).as_posix() for path in sample.images] == images


def test_a_data_url_is_the_picture(root):
    url = "data:image/png;base64," + base64.b64encode(picture(5)).decode()
    sample = read(dict(messages=asked(part("Q"), {"type": "image_url", "image_url": {"url": url}})), root)
    assert sample.images == (picture(5),) and sample.turns[0].text == "Q\n<image>"


@pytest.mark.parametrize(
    ("turn", "weight"),
    [
        ({}, 1.0),
        ({"weight": None}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 1}, 1.0),
        ({"weight": 0.25}, 0.25),
        ({"loss": False}, 0.0),
        ({"train": True}, 1.0),
    ],
)
def test_weights_of_replies(turn, weight, root):
    sample = read(dict(messages=[CHAT[0] | {"weight": 0}, CHAT[1] | turn]), root)
    assert [turn.weight for turn in sample.turns] == [0.0, weight]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        # No JSON object.
        (b"", "not valid JSON"),
        (b'{"a": 1},', "not valid JSON: Extra data"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{1: "a"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "x\ny"}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"b": {"a": 1, "a": 2}}', "the key 'a' twice"),
        (b'{"a": "' + b"x" * LONGEST + b'"}', "33,554,441 bytes; a record may have 33,554,432"),
        (dict.fromkeys(map(str, range(1001))), "1,001 keys"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"NaN", "no JSON object"),
        # Turns.
        ({}, "no turns in 'conversations' or 'messages'"),
        (dict(instruction="Q", output="A"), "no turns"),
        (dict(conversations=[]), "no turns"),
        (dict(conversations=PLAIN, messages=CHAT), "both 'conversations' and 'messages'"),
        (dict(conversations={"a": 1}), "list of turns"),
        (dict(messages=["Q", "A"]), "list of turns"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "role 'tool' is not read; known: human, user"),
        (dict(messages=[{"role": ["user"], "content": "x"}]), r"role \['user'\] is not read"),
        (dict(messages=[{"role": "user", "from": "human", "content": "x"}]), "both 'from' and 'role'"),
        (dict(messages=[{"role": "user", "content": "x", "value": "y"}]), "both 'value' and 'content'"),
        (dict(messages=[{"role": "user", "content": 7}]), "must be a text, not 7"),
        (dict(messages=[{"role": "user"}]), "must be a text, not None"),
        (dict(messages=[CHAT[0], CHAT[1] | {"tool_calls": [{}]}]), "'tool_calls': tools are not read"),
        (dict(messages=[CHAT[0] | {"images": ["0.png"]}, CHAT[1]]), "the key 'images' is not read"),
        (dict(system="S", messages=[{"role": "system", "content": "T"}, *CHAT]), "'system' and a system turn"),
        (dict(system=["S"], messages=CHAT), "'system' must be a text"),
        # Weights.
        (dict(messages=[CHAT[0], CHAT[1] | {"weight": 2}]), "from 0 to 1, not 2"),
        (dict(messages=[CHAT[0], CHAT[1] | {"weight": -1}]), "from 0 to 1, not -1"),
        (dict(messages=[CHAT[0], CHAT[1] | {"weight": "0"}]), "from 0 to 1, not '0'"),
        (dict(messages=[CHAT[0], CHAT[1] | {"weight": float("nan")}]), "from 0 to 1, not nan"),
        (dict(messages=[CHAT[0], CHAT[1] | {"weight": 0, "loss": True}]), "both 'weight' and 'loss'"),
        (dict(messages=[CHAT[0] | {"weight": 1}, CHAT[1]]), "a user turn has the weight 1"),
        (dict(messages=[CHAT[0], CHAT[1] | {"weigth": 0}]), "did you mean 'weight'"),
        # Texts.
        (dict(conversations=[PLAIN[0], {"from": "gpt", "value": "\ud83d"}]), "half a surrogate pair"),
        (dict(conversations=[{"from": "human", "value": "x\udc00"}, PLAIN[1]]), "half a surrogate pair"),
        (dict(messages=asked(part("\ud83d"))), "half a surrogate pair"),
        (dict(system="\ud83d", messages=CHAT), "half a surrogate pair"),
        (dict(image="\ud83d.png", conversations=MARKED), "half a surrogate pair"),
        *[(dict(messages=asked(part(chr(0x10FFF0 + k)))), f"U\\+10FFF{k}, which mmjax") for k in range(4)],
        # Keys.
        (dict(imgae="0.png", conversations=PLAIN), "no key 'imgae'; did you mean 'image'"),
        (dict(imagse=["0.png"], conversations=PLAIN), "did you mean 'image"),
        (dict(Image="0.png", conversations=PLAIN), "the key 'Image' is not read"),
        (dict(image_path="0.png", conversations=PLAIN), "the key 'image_path' is not read"),
        (dict(img="0.png", conversations=PLAIN), "the key 'img' is not read"),
        (dict(convesations=PLAIN), "did you mean 'conversations'"),
        (dict(message=CHAT), "did you mean 'messages'"),
        (dict(sytem="S", messages=CHAT), "did you mean 'system'"),
        (dict(video="a.mp4", image="0.png", conversations=MARKED), "the key 'video' is not read"),
        (dict(audios=["a.wav"], messages=CHAT), "the key 'audios' is not read"),
        (dict(tools="[{}]", messages=CHAT), "'tools': tools are not read"),
        (dict(chosen={"from": "gpt"}, conversations=PLAIN), "preferences are not read"),
        # Pictures and marks.
        (dict(images=["0.png"], conversations=PLAIN), "names 1 picture, but no turn marks its place with <image>"),
        (dict(image=["0.png", "1.png"], conversations=MARKED), "names 2 pictures, but marks 1"),
        (dict(image="0.png", images=["0.png"], conversations=MARKED), "both 'image' and 'images'"),
        (dict(conversations=MARKED), "marks a picture with <image>, but names none"),
        (dict(conversations=[{"from": "human", "value": "Q\r\n<image>\r\n"}, PLAIN[1]]), "names none"),
        (dict(messages=asked({"type": "image"}, part("Q"))), "names 0 pictures, but marks 1"),
        (dict(messages=[*asked({"type": "image", "path": "0.png"}), *MARKED]), "marks a picture .* names none"),
        (dict(messages=asked({"type": "image", "index": 1}), images=["0.png"]), "another order"),
        (dict(image=7, conversations=MARKED), "path must be a text, not 7"),
        (dict(image=[None], conversations=MARKED), "path must be a text, not None"),
        (dict(image={"bytes": "x"}, conversations=MARKED), "path must be a text"),
        (dict(image="loop.png", conversations=MARKED), "cannot be followed|there is no picture"),
        (dict(image="a\0.png", conversations=MARKED), "there is no picture|cannot be followed"),
        (dict(image="https://x.org/a.png", conversations=MARKED), "is a URL: save it in"),
        (dict(image="file:///etc/passwd", conversations=MARKED), "is a URL"),
        (dict(image="data:image/png;base64,?", conversations=MARKED), "not valid base64"),
        (dict(image="data:text/plain,x", conversations=MARKED), "is a URL"),
        (dict(messages=asked({"type": "image_url", "image_url": {"url": "http://a/b"}})), "is a URL"),
        (dict(messages=asked({"type": "image_url", "image_url": 7})), "path must be a text, not 7"),
        (dict(messages=asked({"type": "input_audio", "input_audio": {}})), "a part of type 'input_audio'"),
        (dict(messages=asked({"type": "image", "source": {"data": ""}})), r"keys \['source'\] is not read"),
        (dict(messages=asked({"type": ["text"], "text": "x"})), r"a part of type \['text'\]"),
        (dict(messages=asked("Q")), "a part of a turn must be a JSON object"),
        (dict(messages=asked(part(7))), "a text part must be a text, not 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(record, reason, root):
    (root / "loop.png").symlink_to("loop.png")
    with pytest.raises(BadRecord, match=reason) as caught:
        read(record, root)
    assert caught.value.id == "f.jsonl:7" and len(str(caught.value)) < 1200


@pytest.mark.parametrize(
    ("id", "shown"),
    [
        ("r1", ":r1"),
        (12, ":12"),
        ("猫", ":猫"),
        ("a\nb\x1b\ud83d", r":a\nb\x1b\ud83d"),
        ("x" * 5000, ":" + "x" * 100),
        (None, ""),
        ([1], ""),
        ({"a": 1}, ""),
        (True, ""),
    ],
)
def test_ids_of_any_kind(id, shown, root):
    assert read(dict(id=id, messages=CHAT), root).id == "f.jsonl:7" + shown


def test_keys_that_are_not_read_are_said_once(tmp_path, words, caplog):
    records = [conversation(n, pictures=1) | {"source": "web", "image_id": n} for n in range(3)]
    records[0] |= {"image_path": "elsewhere/0.png", "width": 4, "video": None, "\ud83d": 1}
    path = write_folder(tmp_path, records)
    with caplog.at_level(logging.WARNING):
        dataset(path, words)
    (said,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert said.startswith(
        "Source 'main': keys of records that are not read: 'source' (of 3), 'image_id' (of 3), "
    )
    assert "'width' (of 1)" in said and "'\\ud83d' (of 1)" in said and "video" not in said


def dataset(path, tokenizer, turns="together", **changes):
    main = dict(path=path, root="", weight=1.0, turns=turns)
    spec = spec_of(path, sources=dict(main=main), length=128) | changes
    log = f"{path}.quarantine"
    settings = dict(span=4, splice=True, rows=None, seed=0, data_dir="", quarantine=log)
    return make_dataset(spec, tokenizer, **settings)


def refused(path):
    with open(f"{path}.quarantine") as log:
        return {entry["id"]: entry["reason"] for entry in map(json.loads, log)}


@pytest.mark.parametrize("template", ["chatml", "paligemma", "jinja"])
def test_a_reply_of_weight_0_is_read_and_not_learned(tmp_path, words, template):
    if template == "jinja":
        template = (
            "jinja:{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    turns = [("human", "one ?", None), ("gpt", "two", 0), ("human", "three ?", None), ("gpt", "four", 0.5)]
    record = dict(conversations=[{"from": role, "value": text, "weight": w} for role, text, w in turns])
    plain = dict(conversations=[{"from": role, "value": text} for role, text, _ in turns])
    weighed = dataset(write_folder(tmp_path / "a", [record]), words, template=template).row(0)
    whole = dataset(write_folder(tmp_path / "b", [plain]), words, template=template).row(0)
    np.testing.assert_array_equal(weighed.tokens, whole.tokens)
    np.testing.assert_array_equal(weighed.causal, whole.causal)
    four = words.encode("four")[0][0], words.encode(" four")[0][0]
    last = np.flatnonzero(np.isin(whole.tokens, four))[0]
    targets = np.flatnonzero(whole.loss_weight)
    first = targets[targets < last - 1]
    assert len(first) and not weighed.loss_weight[first].any()
    assert weighed.loss_weight[last] == 0.5 and set(np.unique(weighed.loss_weight)) == {0.0, 0.5}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("gpt", "Hi")], "requires a user turn"),
        ([("system", "S")], "requires a user turn"),
        ([("human", "Q")], "has no answer"),
        ([("human", "Q"), ("gpt", "A"), ("human", "R")], "has no answer"),
        ([("human", "Q"), ("gpt", "A", 0), ("human", "R"), ("gpt", "B", 0)], "all answers have the weight 0"),
    ],
)
def test_conversations_that_cannot_stand_apart(tmp_path, words, turns, reason):
    said = [{"from": role, "value": text, "weight": (*more, None)[0]} for role, text, *more in turns]
    path = write_folder(tmp_path, [conversation(0, pictures=0), dict(conversations=said)])
    assert len(dataset(path, words, turns="apart")) == 1
    assert reason in refused(path)["data.jsonl:2"]


def test_apart_keeps_a_greeting_and_leaves_out_a_question_without_a_target(tmp_path, words):
    turns = [("gpt", "hello"), ("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four", 0)]
    said = [{"from": role, "value": text, "weight": (*more, None)[0]} for role, text, *more in turns]
    row = dataset(write_folder(tmp_path, [dict(conversations=said)]), words, turns="apart").row(0)
    text = words.decode(row.tokens.tolist())
    assert row.segments.max() == 1 and "hello" in text and "two" in text and "three" not in text
    assert words.decode(row.tokens[row.loss_weight > 0].tolist()).split() == ["hellotwo"]


def test_a_text_that_the_tokenizer_cannot_take_is_refused_alone(tmp_path, words):
    class Picky(type(words)):
        def encode(self, text, start=True):
            if "☃" in text:
                raise UserError("turns a single character into a special token")
            return super().encode(text, start)

    bad = conversation(1, pictures=0)
    bad["conversations"][0]["value"] = "a ☃"
    path = write_folder(tmp_path, [conversation(0, pictures=0), bad])
    assert len(dataset(path, Picky())) == 1
    assert "special token" in refused(path)["data.jsonl:2:r1"]


LINE = json.dumps(dict(conversations=PLAIN)).encode()


@pytest.mark.parametrize(
    ("name", "data", "good"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + LINE + b"\n", 1),
        ("crlf.JSONL", LINE + b"\r\n\r\n" + LINE + b"\r\n  \r\n", 2),
        ("bom.json", b"\xef\xbb\xbf[" + LINE + b"]\n", 1),
        ("pretty.json", json.dumps([dict(conversations=PLAIN)] * 3, indent=2).encode(), 3),
        ("deep.json", b"[" + LINE + b', {"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}," + LINE + b"]", 2),
        ("number.json", b"[" + LINE + b', {"a": ' + b"9" * 5000 + b"}, 7, null, [1], " + LINE + b"]", 2),
        ("broken.json", b'[{"a": }, ' + LINE + b', {"b" "c"}, ' + LINE + b",]", 2),
        ("strings.json", json.dumps([dict(conversations=PLAIN, note='],} \\" [{,')]).encode(), 1),
        ("bytes.json", b'[{"a": "\xff"}, ' + LINE + b"]", 1),
    ],
)
def test_files_with_bad_records_give_the_good_ones(tmp_path, name, data, good):
    (tmp_path / name).write_bytes(data)
    source, found = open_source(str(tmp_path / name)), 0
    for index in range(len(source)):
        try:
            assert source[index].turns == tuple(TEXTS)
            found += 1
        except BadRecord as error:
            assert error.id.startswith(f"{name}:{index + 1}") and error.reason
    assert found == good


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jsonl", b"", "holds no record"),
        ("blank.jsonl", b"\n \r\n\t\n", "holds no record"),
        ("bom.jsonl", b"\xef\xbb\xbf", "holds no record"),
        ("empty.json", b"", "no list of records"),
        ("none.json", b" [ ] ", "holds no record"),
        ("object.json", b'{"data": [{}]}', "no list of records"),
        ("lines.json", LINE + b"\n" + LINE, "name it .jsonl"),
        ("more.json", b"[{}] [{}]", "something follows the list"),
        ("word.json", b'"a"', "no list of records"),
        ("open.json", b"[{}, {", "a bracket is not closed"),
        ("cut.json", b'[{"a": "b', "a string is not closed"),
        ("wide.jsonl", LINE.decode().encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        ("packed.jsonl.gz", b"x", "nor a .json or .jsonl file: unpack it"),
        ("table.csv", b"x", "neither"),
    ],
)
def test_files_that_are_no_records_stop_the_start(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        open_source(str(tmp_path / name))
