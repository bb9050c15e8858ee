"""The assistant: batched answers, conversations, scores, and clear refusals."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from tiny import PIXELS, Letters, forward_log_probs, solid, tiny_assistant

from mmjax.data.image import ImageError, ImageOptions
from mmjax.data.views import Dynamic
from mmjax.inference.chat import Sampling
from mmjax.inference.prompts import ask, collate, load_rgb
from mmjax.model import MultimodalLM
from mmjax.types import Sample, Turn

RED, BLUE = solid([[[255, 0, 0]]]), solid([[[0, 0, 255]]])
MANY = [
    ask("What is it?", [RED], "1"),
    ask("And here? <image> Well?", [BLUE], "2"),
    ask("Hello, what is red?", [], "3"),
    ask("Which is red?", [RED, BLUE], "4"),
    Sample("5", (Turn("user", "<image>\nWhat?"), Turn("assistant", "A dot."), Turn("user", "Where?")), (RED,)),
]


@pytest.fixture(scope="module")
def assistant():
    return tiny_assistant()


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_answers_do_not_depend_on_the_batch(fusion):
    assistant = tiny_assistant(fusion, batch=2)
    prompts = MANY if fusion == "splice" else MANY[:3]
    together = assistant.generate(prompts)
    assert all(together) and len(set(together)) == len(prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        assert assistant.generate([prompt]) == [expected]


def test_drawn_answers_depend_on_seed_and_place_alone(assistant):
    warm = Sampling(max_new=8, temperature=1.0)
    together = assistant.generate(MANY, warm)
    assert tiny_assistant(batch=2).generate(MANY, warm) == together
    assert assistant.generate(MANY[:2], warm) == together[:2]
    assert assistant.generate(MANY, dataclasses.replace(warm, seed=1)) != together


def test_repeated_calls_use_one_program():
    traces = []

    class Counting(MultimodalLM):
        def prefill(self, *args):
            traces.append(args)
            return super().prefill(*args)

    assistant = tiny_assistant()
    assistant.model = Counting(**vars(assistant.model))
    for text, image in [("What is it?", RED), ("And what is it now?", BLUE), ("Hello, what is red?", None)]:
        assistant(text, image)
    assert len(traces) == 1


def test_pictures_of_every_kind_give_the_same_answer(assistant, tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    kinds = [path, str(path), path.read_bytes(), RED, Image.fromarray(RED), np.tile(RED, (2, 2, 1))]
    answers = {assistant("What is it?", image=kind) for kind in kinds}
    assert len(answers) == 1
    assert answers == {assistant("<image>\nWhat is it?", images=[RED])}
    assert answers != {assistant("What is it?", image=BLUE)}


@pytest.mark.parametrize("length", [1, 2])
def test_stop_strings_cut_the_text(assistant, length):
    free = assistant("What is it?", image=RED)
    stop = free[3 : 3 + length]
    sampling = Sampling(max_new=8, stop=(stop,))
    assert assistant("What is it?", image=RED, sampling=sampling) == free[: free.index(stop)].strip()
    assert "".join(assistant.stream(MANY[0], sampling)) == free[: free.index(stop)].strip()


def test_stream_gives_the_answer_of_generate(assistant):
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new=8, temperature=temperature)
        pieces = list(assistant.stream(MANY[0], sampling))
        assert len(pieces) > 1
        assert "".join(pieces) == assistant.generate(MANY[:1], sampling)[0]


def test_a_conversation_remembers_turns_and_pictures(assistant):
    conversation = assistant.chat(system="Be brief.")
    first = conversation.say("What is it?", image=RED)
    second = conversation.say("Where?")
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", first),
        Turn("user", "Where?"),
    )
    assert assistant.generate([Sample("whole", turns, (RED,))]) == [second]
    assert [turn.role for turn in conversation.turns] == ["system", *["user", "assistant"] * 2]
    conversation.reset()
    assert conversation.turns == [Turn("system", "Be brief.")] and not conversation.images


def test_pictures_in_tiles(monkeypatch, tmp_path):
    """Whatever they come as, and in later turns, they are cut as in training."""
    monkeypatch.setattr(Letters, "specials", Letters.specials | {"<img>": 1, "</img>": 2})
    assistant = tiny_assistant(length=256)
    assistant.views = Dynamic(ImageOptions(PIXELS, "stretch", 10_000), fewest=1, most=4)
    path = tmp_path / "wide.png"
    wide = np.concatenate([RED, BLUE, RED // 2, BLUE // 3], axis=1)
    Image.fromarray(wide).save(path)
    batch = assistant._collate([assistant._encode(ask("?", [path]), 8)], [ask("?", [path])], 1)
    np.testing.assert_array_equal(batch.media["image"].values[0, :2], [RED, BLUE])
    assert batch.media["image"].valid.sum() == 5 and batch.media["image"].slot.max() == 5 * 4 - 1

    prompts = [ask("What is it?", [kind]) for kind in (path, wide, Image.open(path), path.read_bytes())]
    assert len(set(assistant.generate(prompts))) == 1
    conversation = assistant.chat()
    first = conversation.say("What is it?", image=path)
    path.unlink()
    turns = (*prompts[0].turns, Turn("assistant", first), Turn("user", "Where?"))
    assert conversation.say("Where?") == assistant.generate([Sample("whole", turns, (wide,))])[0]
    np.testing.assert_array_equal(
        assistant.score(prompts[1], ["Red", "A dot."]), assistant.score(prompts[3], ["Red", "A dot."])
    )


def test_an_interrupted_answer_stays_and_a_failed_question_leaves_no_trace(assistant):
    conversation = assistant.chat()
    answer = conversation.stream("What is it?", image=RED)
    said = next(answer)
    answer.close()
    assert conversation.turns == [Turn("user", "<image>\nWhat is it?"), Turn("assistant", said)]
    for question in (dict(text="<image> where?"), dict(text="a" * 500), dict(text="And?", image=b"")):
        with pytest.raises(ValueError):
            conversation.say(**question)
    assert len(conversation.turns) == 2 and len(conversation.images) == 1


def test_what_the_model_says_never_makes_a_conversation_invalid(monkeypatch):
    monkeypatch.setattr(Letters, "letters", "<>\\" + Letters.letters[:-3])
    assistant, says = tiny_assistant(), "the tag<image>and\\<image>"
    monkeypatch.setattr(Letters, "decode", lambda self, ids: says)
    conversation = assistant.chat()
    for picture in (RED, None, BLUE):
        assert conversation.say("What?", image=picture) == says
    assert np.isfinite(assistant.score(ask("What?", [RED]), [says])).all()


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_scores_are_sums_of_log_probabilities(fusion):
    assistant = tiny_assistant(fusion)
    candidates = ["A dot.", "Red", "It is a blue line, I think."]
    scores = assistant.score(MANY[4], candidates)
    opening = assistant.encoder.encode_prompt(MANY[4].turns)
    for candidate, score in zip(candidates, scores, strict=True):
        reply = dataclasses.replace(MANY[4], turns=(*MANY[4].turns, Turn("assistant", candidate)))
        encoded = assistant.encoder.encode(reply)
        log_probs = forward_log_probs(
            assistant.model,
            assistant.params,
            collate([encoded], [[RED[None]]], 1, assistant.views, assistant.encoder.span),
        )
        # The candidate, then the token that ends a reply; what follows that is no part of it.
        targets = [*Letters().encode(candidate)[0], Letters.specials["<|im_end|>"]]
        expected = sum(log_probs[0, len(opening) - 1 + k, token] for k, token in enumerate(targets))
        assert score == pytest.approx(expected, abs=1e-3)


def test_what_greedy_decoding_says_scores_best():
    assistant = tiny_assistant(max_new=6)
    said = assistant.encoder.tokenizer.decode
    best = assistant.generate(MANY[:1])[0]
    others = [said(np.random.default_rng(k).integers(6, 66, 6)) for k in range(5)]
    scores = assistant.score(MANY[0], [best, *[other for other in others if other.strip()]])
    assert scores.argmax() == 0


def test_bad_prompts_are_refused_by_name(assistant):
    question = Turn("user", "What?")
    for bad, message in [
        (Sample("a7", (Turn("user", "<image><image>"),), (RED,)), "a7: has 2 <image> marks for 1 pictures"),
        (Sample("a7", (question,), (RED,)), "a7: has 0 <image> marks for 1 pictures"),
        (Sample("a7", (Turn("robot", "hi"), question)), "a7: unknown role 'robot'"),
        (Sample("a7", (question, Turn("assistant", "x"))), "a7: a prompt ends with a turn of the user"),
        (Sample("a7", ()), "a7: a prompt ends"),
        (ask("long " * 100, [], "a7"), "a7: wants 5.. tokens, of them 8 for the answer; .* has 192"),
        (ask("What?", ["no/such.png"], "a7"), "no/such.png cannot be read: No such file"),
        (ask("What?", [b"GIF89a"], "a7"), "a7, picture 1: "),
    ]:
        with pytest.raises(ValueError, match=message):
            assistant.generate([MANY[0], bad])
    with pytest.raises(ValueError, match="2 <image> marks for 1 pictures"):
        assistant("<image> <image>", image=RED)
    with pytest.raises(ValueError, match="empty answer"):
        assistant.score(MANY[0], ["yes", " "])
    assert assistant.generate([]) == []


def test_bad_pictures_are_refused(assistant):
    truncated = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)).save(truncated, "PNG")
    for bad, message in [
        (np.zeros((4, 4, 3), np.float32), r"it is float32 \[4, 4, 3\]; give uint8 .* \(255 \* x\)"),
        (np.zeros((3, 4, 5), np.uint8), r"it is uint8 \[3, 4, 5\]; give .*transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((4, 4, 2), np.uint8), r"it is uint8 \[4, 4, 2\]; give uint8 \[H, W, 3\]"),
        (np.zeros((4, 4), np.int32), r"it is int32 \[4, 4\]; give uint8"),
        (np.zeros((0, 4, 3), np.uint8), "it of 4 x 0 pixels is empty"),
        (Image.new("F", (4, 4)), "floating-point pixels"),
        ([[0, 0]], "it is a list; give a path"),
        (truncated.getvalue()[:500], "cannot be decoded"),
        (Image.new("RGB", (200, 200)), "over the limit of 10000 pixels"),
        (b"", "it has 0 bytes"),
    ]:
        with pytest.raises(ImageError, match=message):
            load_rgb(bad, assistant.views, "it")
