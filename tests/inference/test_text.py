"""Stop strings cut text, not tokens; what a stream has given out is never taken back."""

import pytest

from mmjax.inference.text import TextStream, answer, cut


def decode(ids):
    return bytes(ids).decode(errors="replace")


def stream(text, stops):
    """What is given out after each byte of the text, and whether it was stopped."""
    growing = TextStream(decode, stops)
    pieces = []
    for byte in text.encode():
        pieces.append(growing.push(byte))
        if growing.stopped:
            break
    return [*pieces, growing.finish()], growing.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        (" a red circle", [], " a red circle"),
        ("    for x in xs:\n        pass\n\n", [], "    for x in xs:\n        pass"),
        ("red\nUSER: and", ["\nUSER:"], "red"),
        ("red\nUSED", ["\nUSER:"], "red\nUSED"),
        ("one END two STOP", ["STOP", "END"], "one"),
        ("aab", ["ab"], "a"),
        ("ends with a beginning, ST", ["STOP"], "ends with a beginning, ST"),
        ("STOP", ["STOP"], ""),
        ("", ["STOP"], ""),
        ("Grüße, 世界 \n", ["界"], "Grüße, 世"),
        ("naïve \U0001f600!", ["?"], "naïve \U0001f600!"),
    ],
)
def test_an_answer_and_its_stream_are_the_same_text(text, stops, expected):
    pieces, stopped = stream(text, stops)
    assert answer(decode, text.encode(), stops) == expected
    assert "".join(pieces) == expected
    assert stopped == any(stop in text for stop in stops)
    assert "\ufffd" not in "".join(pieces)


def test_white_space_that_the_template_writes_before_a_reply_is_no_part_of_it():
    growing = TextStream(decode, (), opening="\n\n")
    pieces = [growing.push(byte) for byte in b"\n\n  red"]
    assert "".join([*pieces, growing.finish()]) == answer(decode, b"\n\n  red", (), "\n\n") == "  red"


def test_a_stream_waits_only_as_long_as_it_must():
    pieces, _ = stream("red ST. STOP", ["STOP"])
    assert pieces[:7] == ["r", "e", "d", "", "", "", " ST."]


def test_a_broken_character_at_the_end_is_shown_as_such():
    growing = TextStream(decode, ())
    assert growing.push("ü".encode()[0]) == ""
    assert growing.finish() == "\ufffd"


def test_cut_takes_the_earliest_stop_and_ignores_empty_ones():
    assert cut("a b c", ["c", "b", ""]) == ("a ", True)
    assert cut("a b c", [""]) == ("a b c", False)
