"""SmolLM2-135M-Instruct as it is packaged, Q4_1: our logits, ids and answers against `transformers`."""

import importlib.util

import pytest
import tokenizers
import torch
import transformers
from parity import TOLERANCE, batch_of, error, logits

import mmjax
from mmjax.convert import convert
from mmjax.hub.packaged import PACKAGED, packaged_model
from mmjax.types import Sample, Turn

MISSING = importlib.util.find_spec(PACKAGED["smollm2"][0]) is None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING, reason=PACKAGED["smollm2"][2])]

TEXTS = [
    "The capital of France is",
    "def f(x):\n    return x ** 2  # squares\n\n\tend",
    "Grüße, naïve façade; 漢字 と 🙂🙂 ﷽ \u00a0 x\u200by",
    "In 1969, 3.14159 and 1,000,000; x2",
    "I'm sure they've said 'tis DON'T\n\n\n ok   ",
]
TURNS = [
    [Turn("user", "What is 2 + 2?")],
    [Turn("system", "Be brief."), Turn("user", "  Hi <b>there</b>\n")],
    [Turn("user", "a"), Turn("assistant", "b\nc"), Turn("user", "d"), Turn("assistant", "é"), Turn("user", "f")],
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    target = tmp_path_factory.mktemp("smollm2") / "run"
    convert("smollm2", target)
    return target


@pytest.fixture(scope="module")
def assistant(workdir):
    return mmjax.load(workdir)


@pytest.fixture(scope="module")
def reference():
    file = packaged_model("smollm2")
    options = dict(gguf_file=file.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    return model.eval(), tokenizer


def test_logits_and_greedy_continuations(assistant, reference):
    theirs, _ = reference
    texts = [assistant.encoder.tokenizer.encode(text)[0] for text in TEXTS]
    packed = logits(assistant.model, assistant.params, batch_of([texts[:2], texts[2:]], 96))
    begin = 0
    for k, ids in enumerate(texts):
        begin = 0 if k in (0, 2) else begin
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0]
        row = packed[0 if k < 2 else 1, begin : begin + len(ids)]
        assert error(row, expected) < TOLERANCE
        begin += len(ids)


def test_the_capital_of_france(assistant):
    tokenizer = assistant.encoder.tokenizer
    ids = tokenizer.encode(TEXTS[0])[0]
    for _ in range(2):
        found = logits(assistant.model, assistant.params, batch_of([[ids]], 8))
        ids = [*ids, int(found[0, len(ids) - 1].argmax())]
    assert tokenizer.decode(ids).startswith("The capital of France is Paris")


def test_it_answers_as_transformers_does(assistant, reference):
    """Greedy, 32 tokens, through the cache, with the file's own chat template."""
    theirs, tokenizer = reference
    sampling = assistant.sampling.__class__(max_new=32)
    for turns in TURNS[:2]:
        messages = [dict(role=turn.role, content=turn.text) for turn in turns]
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            expected = theirs.generate(**given, do_sample=False, max_new_tokens=32)[
                0, given["input_ids"].shape[1] :
            ]
        found = assistant.generate([Sample("q", tuple(turns))], sampling)[0]
        assert found == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert "Paris" in assistant("What is the capital of France?")


def test_ids_of_texts(assistant, reference):
    """`transformers` knows not the file's 'smollm' way to cut text; it differs for spaces before digits
    that are several, or several bytes long."""
    ours, (_, theirs) = assistant.encoder.tokenizer, reference
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)[0]) == text
    assert ours.bos is None and ours.special("<|im_end|>") == ours.eos == 2
    # As SmolLM2's own tokenizer.json has it.
    pre = tokenizers.pre_tokenizers
    own = tokenizers.Tokenizer.from_file(ours.path)
    own.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    for text in [*TEXTS, "a  12   345\n 6", " 7 ½ Ⅷ ٣٤"]:
        assert ours.encode(text)[0] == own.encode(text).ids
    assert ours.encode("Hello world! 123")[0] == [19556, 905, 17, 216, 33, 34, 35]


def test_ids_of_conversations(assistant, reference):
    _, theirs = reference
    for turns in TURNS:
        messages = [dict(role=turn.role, content=turn.text) for turn in turns]
        prompt = assistant.encoder.encode_prompt(turns).tokens.tolist()
        assert prompt == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    whole = assistant.encoder.encode(Sample("s", tuple(TURNS[2][:4])))
    messages = [dict(role=turn.role, content=turn.text) for turn in TURNS[2][:4]]
    assert whole.tokens.tolist() == theirs.apply_chat_template(messages)["input_ids"]
    encode = assistant.encoder.tokenizer.encode
    targets = whole.tokens[whole.loss_weight > 0].tolist()
    assert targets == [
        *encode("b\nc")[0],
        2,
        *encode("é")[0],
        2,
    ]
