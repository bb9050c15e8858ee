"""Settings of decoding: what they may be, in Python and on the command line, and what beams do everywhere."""

import subprocess
import sys

import numpy as np
import pytest
from test_terminal import talk
from tiny import Letters, solid, tiny_assistant

from mmjax.data.quarantine import TooManyBadRecords
from mmjax.errors import UserError
from mmjax.evaluation.recording import RecordingAssistant
from mmjax.inference.prompts import ask
from mmjax.inference.sample import make_rule
from mmjax.inference.settings import Sampling
from mmjax.model import MultimodalLM

NAN, INF = float("nan"), float("inf")
WRONG = [
    ("temperature", NAN, "nan is no finite number. It is 0 or more"),
    ("temperature", INF, "inf is no finite number"),
    ("temperature", -0.1, "-0.1 is below 0"),
    ("top_p", NAN, "nan is no finite number. It is above 0, up to 1"),
    ("top_p", 0.0, "0.0 must be above 0. It is above 0, up to 1"),
    ("top_p", 1.01, "1.01 is above 1"),
    ("top_k", -1, "-1 is below 0"),
    ("max_new", 0, "0 is below 1. It is 1 or more"),
    ("beams", 0, "0 is below 1"),
    ("seed", -1, "-1 is below 0. It is 0 or more, up to 4294967295"),
    ("seed", 2**32, "4294967296 is above 4294967295"),
    ("length_penalty", NAN, "nan is no finite number"),
    ("stop", ("",), "an empty string"),
]
RED = solid([[[255, 0, 0]]])
SEARCH = Sampling(max_new=8, beams=3)


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_value_outside_its_range_is_refused_by_name(name, value, message):
    with pytest.raises(UserError) as error:
        Sampling(**{name: value})
    assert str(error.value).startswith(f"sampling.{name}: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "warm"), ("max_new", 1.5), ("beams", True), ("top_k", None), ("stop", "END"), ("stop", (1,))],
)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=rf"sampling\.{name}: .* is not of type"):
        Sampling(**{name: value})


def test_values_at_the_ends_of_their_ranges_and_numpy_numbers_serve():
    edge = Sampling(max_new=1, temperature=0, top_k=0, top_p=1, seed=2**32 - 1, beams=1, length_penalty=-2)
    assert edge.seed == 2**32 - 1
    given = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), stop=["END"])
    assert given == Sampling(temperature=0.5, top_k=3, stop=("END",)) and hash(given)


@pytest.mark.parametrize(("name", "value", "message"), [row for row in WRONG if row[0] != "stop"])
def test_the_command_line_refuses_them_alike(name, value, message):
    flags = [f"--{name}={value}", "--workdir=nowhere", "--prompt=hi"]
    process = subprocess.run([sys.executable, "-m", "mmjax", "generate", *flags], capture_output=True, text=True)
    assert process.returncode and f"--{name}" in process.stderr and message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("wrong", [dict(temperature=NAN), dict(temperature=[0.5, INF]), dict(top_p=NAN)])
def test_rules_for_rows_are_held_to_the_same(wrong):
    settings = dict(temperature=0.0, top_k=0, top_p=1.0, stop=(), pad=0) | wrong
    with pytest.raises(UserError, match="must"):
        make_rule(2, None, **settings)


def test_a_search_draws_nothing():
    with pytest.raises(UserError, match=r"4 beams search .* with a temperature of 0, not 0\.5"):
        Sampling(beams=4, temperature=0.5)
    warm = Sampling(temperature=0.5, top_k=9)
    assert warm.but(beams=4) == Sampling(beams=4, top_k=9)
    assert warm.but(beams=4).but(temperature=1.0) == Sampling(temperature=1.0, top_k=9)
    with pytest.raises(UserError, match="2 beams search"):
        warm.but(beams=2, temperature=1.0)


def test_a_search_is_what_streams_and_conversations_say():
    assistant = tiny_assistant()
    question = ask("What is it?", [RED])
    (found,) = assistant.generate([question], SEARCH)
    assert found and found != assistant.generate([question])[0]
    assert list(assistant.stream(question, SEARCH)) == [found]
    assert assistant.chat().say("What is it?", image=RED, sampling=SEARCH) == found
    conversation = assistant.chat()
    assert list(conversation.stream("What is it?", image=RED, sampling=SEARCH)) == [found]
    assert conversation.turns[-1].text == found
    printed = talk("What is it?", assistant=tiny_assistant(beams=3))
    assert "\n".join(printed).split("What is it?\n")[1] == assistant("What is it?", sampling=SEARCH) + "\nBye."


def test_a_search_ends_before_a_stop_string():
    assistant = tiny_assistant()
    (found,) = assistant.generate([ask("What is it?", [RED])], SEARCH)
    pair = SEARCH.but(stop=(found[3:5],))
    assert assistant("What is it?", image=RED, sampling=pair) == found[: found.index(found[3:5])].rstrip()
    # A token that stops ends a hypothesis, as a stop id of the template does.
    one = SEARCH.but(stop=(found[3],))
    answer = assistant("What is it?", image=RED, sampling=one)
    assert found[3] not in answer
    stops = [assistant.encoder.tokenizer.encode(found[3])[0][0], *assistant.encoder.stop_ids]
    assistant.encoder.tokenizer.stops = stops
    assert assistant("What is it?", image=RED, sampling=SEARCH) == answer


def test_a_model_without_an_encoder_refuses_pictures():
    assistant = tiny_assistant()
    model = assistant.model
    assistant.model = MultimodalLM({}, {}, model.backbone, model.fusion)
    shown = ask("What is it?", [RED], "q1")
    message = "shows a picture, and this model has no encoder of pictures"
    for call in (
        lambda: assistant("What is it?", image=RED),
        lambda: assistant.generate([shown]),
        lambda: list(assistant.stream(shown)),
        lambda: assistant.score(shown, ["A dot"]),
        lambda: assistant.chat().say("What is it?", image=RED),
    ):
        with pytest.raises(UserError, match=message):
            call()
    questions = [ask("What is it?", [RED], str(number)) for number in range(12)]
    for measure in (lambda given: given.ask(questions), lambda given: given.weigh(questions, [["A dot"]] * 12)):
        with pytest.raises(TooManyBadRecords, match=message):
            measure(RecordingAssistant(assistant))
    assert isinstance(assistant("What is it?"), str)


def test_the_terminal_of_such_a_model_says_so_at_once(tmp_path):
    assistant = tiny_assistant()
    assistant.model = MultimodalLM({}, {}, assistant.model.backbone, assistant.model.fusion)
    path = tmp_path / "red.png"
    path.write_bytes(b"whatever")
    printed = talk(f"/image {path}", "Hello", assistant=assistant)
    assert "No picture added: this model has no encoder of pictures." in printed


def test_special_tokens_are_shown_where_they_are_asked_for(monkeypatch):
    """But neither those that end an answer nor padding; in text, streams, searches and later turns alike."""
    specials = {"<image>": 3, "<|im_start|>": 4, "<|im_end|>": 5, "<box>": 1, "<pad>": 0}
    monkeypatch.setattr(Letters, "specials", specials)
    assistant, ids = tiny_assistant(), [Letters.first + 20, 1, Letters.first + 21, 0, 5, 1]
    decode = assistant._decoder(Sampling(special_tokens=True))
    letters = Letters.letters[20], Letters.letters[21]
    assert decode(ids) == f"{letters[0]}<box>{letters[1]}<box>"
    assert assistant._decoder(Sampling())(ids) == "".join(letters)

    # A model whose every token is a special one, so that the answer shows it.
    head = assistant.params["backbone"]["head"]["kernel"]
    assistant.params["backbone"]["head"]["kernel"] = head.at[:].set(0).at[:, 1].set(head[:, 7])
    shown = SEARCH.but(beams=1, special_tokens=True)
    question = ask("What is it?", [RED])
    told = [assistant.generate([question], settings)[0] for settings in (shown, shown.but(beams=2))]
    plain = assistant.generate([question], SEARCH.but(beams=1))[0]
    assert "<box>" in told[0] and "<box>" in told[1] and "<box>" not in plain
    assert "".join(assistant.stream(question, shown)) == told[0]
