"""The terminal: a scripted user, a tiny model, and what is printed."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_assistant

from mmjax.inference.terminal import chat_loop, dragged_path


class User:
    """Types the given lines; an exception among them is raised. Then Ctrl-D."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.printed = io.StringIO()

    def input(self, prompt):
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        self.printed.write(f"> {line}\n")
        return line

    def output(self, *text, **options):
        print(*text, **{key: value for key, value in options.items() if key != "flush"}, file=self.printed)


def talk(*lines, assistant=None):
    user = User(*lines)
    chat_loop(assistant or tiny_assistant(), user.input, user.output)
    return user.printed.getvalue().splitlines()


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "a red dot.png"
    Image.new("RGB", (16, 16), "red").save(path)
    return path


def test_a_question_about_a_picture(red):
    conversation = tiny_assistant().chat()
    expected = [conversation.say("What is it?", image=red), conversation.say("Where?")]
    printed = talk(f"/image {red}", "What is it?", "Where?")
    assert "Picture 1 for your next question: a red dot.png" in printed
    assert "\n".join(printed).split("What is it?\n")[1].split("\n> Where?\n")[0] == expected[0]
    assert "\n".join(printed).split("Where?\n")[1] == expected[1] + "\nBye."


def test_reset_forgets_and_temperature_changes_the_answer(red):
    fresh = tiny_assistant()("Hello")
    printed = "\n".join(
        talk("/image " + str(red), "What?", "/reset", "Hello", "/temperature 2", "/reset", "Hello")
    )
    first, second = (part.split("\n>")[0].split("\nBye.")[0] for part in printed.split("> Hello\n")[1:])
    assert first == fresh and second != fresh
    assert "Temperature 2." in printed and "A new conversation." in printed


def test_bad_input_gets_a_clear_answer_and_changes_nothing(red, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG not really")
    printed = talk(
        "", "/image", "/image no.png", f"/image {broken}", str(tmp_path / "gone.jpg"), "/temperature warm",
        "/temperature -1", "/temperature nan", "/rest", "a" * 500, "/help", "/quit", "unread",
    )  # fmt: skip
    for line in (
        "Which picture? /image PATH",
        "No picture added: no.png cannot be read: No such file or directory.",
        f"No picture added: {tmp_path}/gone.jpg cannot be read: No such file or directory.",
        "There is no command /rest; did you mean 'reset'?",
    ):
        assert line in printed
    assert any(line.startswith(f"No picture added: {broken} is no picture") for line in printed)
    assert any("wants 5" in line and "window has 192" in line for line in printed)
    assert sum("A temperature is a number from 0 on" in line for line in printed) == 3
    assert any("Ctrl-C interrupts" in line for line in printed)
    assert printed[-2:] == ["> /quit", "Bye."]


def test_ctrl_c_interrupts_an_answer_and_the_conversation_goes_on(red):
    assistant = tiny_assistant()
    whole = assistant("What is it?", image=red)

    class Impatient(User):
        pieces = 0

        def output(self, *text, **options):
            super().output(*text, **options)
            self.pieces += options.get("end") == ""
            if self.pieces == 2 and options.get("end") == "":
                raise KeyboardInterrupt

    user = Impatient(f"/image {red}", "What is it?", KeyboardInterrupt(), "/temperature 0")
    chat_loop(assistant, user.input, user.output)
    printed = user.printed.getvalue()
    said = printed.split("What is it?\n")[1].split("\n(Interrupted")[0]
    assert said and whole.startswith(said) and said != whole
    assert printed.count("(Interrupted") == 2 and printed.endswith("Temperature 0.\nBye.\n")


def test_dragged_paths(red, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    escaped = str(red).replace(" ", "\\ ")
    quoted = red.as_uri()
    for line in (str(red), f"'{red}'", f'"{red}"', escaped, quoted, "~/a\\ red\\ dot.png"):
        assert dragged_path(line) == str(red)
    for line in ("What is in a.png", "a red dot.png", "/reset", "it's", str(tmp_path)):
        assert dragged_path(line) is None
    assert np.asarray(Image.open(dragged_path(escaped))).shape == (16, 16, 3)
