"""Tokens, target weights, spans and slots of every template, spelled out; and what must hold for any chat."""

import json
import random
import re

import numpy as np
import pytest
import tokenizers
from materials import SPECIALS, Words

from mmjax.data.chat import Chat
from mmjax.data.marks import MARK
from mmjax.data.quarantine import BadRecord
from mmjax.data.templates import TEMPLATES
from mmjax.nn.masks import attention_mask, steps
from mmjax.types import Sample, Turn

TURNS = (
    Turn("user", "<image>\nwhat is it?"),
    Turn("assistant", "a cat"),
    Turn("user", "sure?"),
    Turn("assistant", "yes"),
)
I, FAKE = "<image>", "<fake_token_around_image>"
SYSTEM = TEMPLATES["vicuna_v1"].system + " USER: "
VICUNA = re.findall(r" ?\w+|.", SYSTEM)  # its text is compared with the original's below

# Every token in order; a '*' in front marks a target.
GOLDEN = {
    "plain": ["<s>", I, I, "*a", "* cat", "*\n", "*yes", "*\n"],
    "bare": [
        *("<s>", I, I, "\n", "what", " is", " it", "?", "\n", "*a", "* cat", "*</s>"),
        *("sure", "?", "\n", "*yes", "*</s>"),
    ],
    "vicuna_v1": [
        *("<s>", *VICUNA, I, I, "\n", "what", " is", " it", "?", " ASSISTANT", ":", "* a", "* cat", "*</s>"),
        *("USER", ":", " sure", "?", " ASSISTANT", ":", "* yes", "*</s>"),
    ],
    "text": [
        *("<s>", I, I, "\n", "what", " is", " it", "?", "*a", "* cat", "*</s>"),
        *("sure", "?", "*yes", "*</s>"),
    ],
    "idefics": [
        *("<s>", FAKE, I, I, FAKE, "what", " is", " it", "?", "*a", "* cat", "*</s>"),
        *("sure", "?", "*yes", "*</s>"),
    ],
    "paligemma": [
        *(I, I, "<s>", "what", " is", " it", "?", "\n", "*a", "* cat", "*</s>"),
        *("<s>", "sure", "?", "\n", "*yes", "*</s>"),
    ],
    "chatml": [
        *("<|im_start|>", "user", "\n", I, I, "\n", "what", " is", " it", "?", "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n", "*a", "* cat", "*<|im_end|>", "\n"),
        *("<|im_start|>", "user", "\n", "sure", "?", "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n", "*yes", "*<|im_end|>", "\n"),
    ],
    "llama3": [
        *("<s>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n"),
        *(I, I, "\n", "what", " is", " it", "?", "<|eot_id|>"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "*a", "* cat", "*<|eot_id|>"),
        *("<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "sure", "?", "<|eot_id|>"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "*yes", "*<|eot_id|>"),
    ],
}


def sample(*turns, id="s1"):
    marks = sum(turn.text.count(MARK) for turn in turns)
    return Sample(id, turns, (b"",) * marks)


@pytest.mark.parametrize("template", TEMPLATES)
def test_golden(template):
    words = Words()
    encoded = Chat(template, words, span=2, splice=True).encode(sample(*TURNS))
    marks = np.where(encoded.loss_weight > 0, "*", "")
    got = [mark + words.words[token] for mark, token in zip(marks, encoded.tokens, strict=True)]
    assert got == GOLDEN[template]
    assert set(encoded.loss_weight.tolist()) == {0.0, 1.0}


def test_vicunas_system_prompt_is_llavas(words):
    text = words.decode(Chat("vicuna_v1", words, 1, True).encode(sample(*TURNS)).tokens)
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: \nwhat is it? ASSISTANT: a cat"
        "USER: sure? ASSISTANT: yes"
    )


def test_system_turn_replaces_the_templates_own(words):
    turns = (Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "yo"))
    text = words.decode(Chat("vicuna_v1", words, 1, True).encode(sample(*turns)).tokens)
    assert text == "be brief USER: hi ASSISTANT: yo"
    encoded = Chat("chatml", words, 1, True).encode(sample(*turns))
    assert [words.words[t] for t in encoded.tokens[:4]] == ["<|im_start|>", "system", "\n", "be"]


def test_slots_and_visible_written_out(words):
    """Two pictures: spliced with two tokens each, or marked by one token for cross-attention."""
    turns = (Turn("user", "x<image>y<image>z"), Turn("assistant", "ok"))
    spliced = Chat("plain", words, 2, True).encode(sample(*turns))
    assert spliced.slot.tolist() == [-1, 0, 1, 2, 3, -1, -1]
    assert spliced.visible.tolist() == [-1, 0, 0, 1, 1, 1, 1]
    assert spliced.causal.tolist() == [1, 1, 1, 1, 1, 1, 1]
    assert spliced.media_count == 2
    crossed = Chat("chatml", words, 1, False).encode(sample(*turns))
    assert crossed.visible.tolist() == [-1] * 4 + [0, 0] + [1] * 10
    assert set(crossed.slot.tolist()) == {-1}
    blocks = Chat("plain", words, 2, True, bidirectional_images=True).encode(sample(*turns))
    assert blocks.causal.tolist() == [1, 1, 0, 1, 0, 1, 1]


def test_a_prefix_is_one_block_and_the_reply_is_causal(words):
    """Which token sees which, row by row: pictures and prompt all of the prompt, a reply what came before."""
    turns = (Turn("user", "<image>\nwhat?"), Turn("assistant", "a cat"))
    encoded = Chat("paligemma", words, 2, True).encode(sample(*turns))
    names = [words.words[token] for token in encoded.tokens]
    assert names == [I, I, "<s>", "what", "?", "\n", "a", " cat", "</s>"]
    step = steps(encoded.causal[None])
    segments = np.ones_like(step)
    seen = attention_mask(step, segments, step, segments)[0]
    rows = ["".join(".x"[int(s)] for s in row) for row in seen]
    assert rows == ["xxxxxx...", *["xxxxxx..."] * 5, "xxxxxxx..", "xxxxxxxx.", "xxxxxxxxx"]
    prompt = Chat("paligemma", words, 2, True).encode_prompt(turns[:1])
    np.testing.assert_array_equal(prompt.causal, encoded.causal[:6])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image><image>what", [I, I, "<s>", "what", "\n"]),
        ("<image>\n<image>\nwhat", [I, I, "<s>", "what", "\n"]),
        ("what<image>", ["<s>", "what", I, "\n"]),
        ("<image>", [I, "<s>", "\n"]),
        ("what", ["<s>", "what", "\n"]),
    ],
)
def test_text_opens_behind_the_first_pictures(words, text, expected):
    encoded = Chat("paligemma", words, 1, True).encode_prompt([Turn("user", text)])
    assert [words.words[token] for token in encoded.tokens] == expected


def random_turns(rng):
    """A conversation of odd texts, attacks on the template among them."""
    bits = [
        "what",
        " is",
        "\n",
        "  ",
        "é",
        "🙂",
        "</s>",
        "<|im_end|>",
        "ASSISTANT:",
        "<s>",
        "a" * 9,
        ".",
        "\u00a0",
    ]
    bits += list(SPECIALS[1:])

    def text(marks):
        parts = rng.choices(bits, k=rng.randint(1, 8)) + [MARK] * marks
        rng.shuffle(parts)
        return "".join(parts)

    turns = [Turn("system", text(0))] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        turns += [Turn("user", text(rng.choice([0, 0, 1, 2]))), Turn("assistant", "A" + text(0))]
    return turns


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_conversation(template, sentencepiece, hf):
    """Fuzz: spans and slots agree, targets exist, prompts are prefixes, truncation cuts no picture."""
    rng = random.Random(0)
    for case in range(60):
        tokenizer = (sentencepiece, hf)[case % 2]
        span, splice = rng.choice([(1, False), (3, True)])
        chat = Chat(template, tokenizer, span, splice)
        turns = random_turns(rng)
        given = sample(*turns)
        whole = chat.encode(given)
        check(chat, whole, len(given.images))
        for k, turn in enumerate(turns):
            if turn.role == "assistant":
                prompt = chat.encode_prompt(turns[:k])
                n = len(prompt)
                np.testing.assert_array_equal(whole.tokens[:n], prompt.tokens)
                np.testing.assert_array_equal(whole.slot[:n], prompt.slot)
                np.testing.assert_array_equal(whole.visible[:n], prompt.visible)
                assert whole.loss_weight[n] == 1, "a reply begins where its prompt ends"
        for length in range(1, len(whole), 1 if case < 8 else 7):
            check_cut(chat, given, whole, length, slots=rng.randint(0, 6))


def check_cut(chat, given, whole, length, slots):
    try:
        cut = chat.fit(given, whole, length, slots, truncate=True)
    except BadRecord as error:
        assert error.id == "s1"
    else:
        assert len(cut) <= length and cut.media_count <= slots
        assert cut.tokens.tolist() == whole.tokens[: len(cut)].tolist()
        check(chat, cut, cut.media_count)


def check(chat, encoded, pictures):
    """What holds for every example."""
    is_image = encoded.tokens == chat.tokenizer.special(MARK)
    assert is_image.sum() == pictures * chat.span and encoded.media_count == pictures
    assert encoded.loss_weight.any() and not encoded.loss_weight[is_image].any()
    expected = np.arange(pictures * chat.span) if chat.splice else np.full(pictures, -1)
    np.testing.assert_array_equal(encoded.slot[is_image], expected)
    assert (encoded.slot[~is_image] == -1).all()
    starts = np.flatnonzero(is_image)[:: chat.span]
    np.testing.assert_array_equal(encoded.visible, [(starts <= t).sum() - 1 for t in range(len(encoded.tokens))])


def render(template, turns):
    """The conversation as one string, as a Hugging Face chat template would give it, without bos."""
    t = TEMPLATES[template]
    text = t.system_open + t.system + t.system_close if t.system else ""
    for turn in turns:
        if turn.role == "user":
            text += t.user_open + turn.text + t.user_close
        else:
            text += t.assistant_open + t.reply_open + turn.text + t.reply_close + t.after_reply
    return text.replace("{eos}", "</s>")


@pytest.mark.parametrize("template", ["vicuna_v1", "chatml", "llama3"])
def test_ids_equal_those_of_the_whole_string(template, hf):
    """What Hugging Face's processors do: render, then tokenise once with special tokens recognised."""
    whole = tokenizers.Tokenizer.from_str(json.dumps(json.loads(hf._bytes)))
    expected = whole.encode(render(template, TURNS), add_special_tokens=False).ids
    chat = Chat(template, hf, span=1, splice=True)
    bos = [hf.bos] if TEMPLATES[template].start else []
    assert chat.encode(sample(*TURNS)).tokens.tolist() == bos + expected


def test_no_token_straddles_prompt_and_reply():
    """This tokenizer would join a newline and the word after it; a prompt ends between the two."""
    words = Words(r"\n\w+| ?\w+|.")
    chat = Chat("chatml", words, 1, True)
    encoded = chat.encode(sample(*TURNS))
    names = [words.words[token] for token in encoded.tokens]
    assert names[:8] == ["<|im_start|>", "user", "\n", I, "\nwhat", " is", " it", "?"]
    assert names[10:16] == ["<|im_start|>", "assistant", "\n", "a", " cat", "<|im_end|>"]
    assert encoded.loss_weight[10:16].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("template", "ids", "strings"),
    [
        ("plain", (), ("\n",)),
        ("vicuna_v1", (2,), ()),
        ("chatml", (5,), ()),
        ("paligemma", (2,), ()),
        ("llama3", (8,), ()),
    ],
)
def test_stop(words, template, ids, strings):
    chat = Chat(template, words, 1, True)
    assert (chat.stop_ids, chat.stop_strings) == (ids, strings)


@pytest.mark.parametrize(
    ("turns", "images", "reason"),
    [
        ((Turn("user", "hi"), Turn("assistant", " \n")), 0, "empty answer"),
        ((Turn("user", "hi"),), 0, "no answer"),
        ((), 0, "no answer"),
        ((Turn("bot", "hi"), Turn("assistant", "x")), 0, "unknown role 'bot'"),
        ((Turn("user", "a"), Turn("assistant", "x")), 1, "0 <image> marks for 1 pictures"),
        ((Turn("user", "<image>"), Turn("assistant", "x")), 2, "1 <image> marks for 2 pictures"),
    ],
)
def test_refused(words, turns, images, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        Chat("chatml", words, 1, True).encode(Sample("s7", turns, (b"",) * images))
    assert caught.value.id == "s7"


def test_too_long_is_refused_where_it_is_not_to_be_cut(words):
    chat = Chat("chatml", words, span=4, splice=True)
    given = sample(*TURNS)
    whole = chat.encode(given)
    assert chat.fit(given, whole, len(whole), 1, truncate=False) is whole
    with pytest.raises(BadRecord, match="a row takes 9 and 1"):
        chat.fit(given, whole, 9, 1, truncate=False)
    with pytest.raises(BadRecord, match="no answer begins within 9 tokens"):
        chat.fit(given, whole, 9, 1, truncate=True)


def test_unknown_names_are_suggested(words):
    with pytest.raises(ValueError, match="vicuna_v1"):
        Chat("vicuna", words, 1, True)
    with pytest.raises(ValueError, match="unknown role"):
        Chat("chatml", words, 1, True).encode_prompt([Turn("human", "hi")])
