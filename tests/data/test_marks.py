"""The mark of a picture, and the same word as text."""

import pytest

from mmjax.data.marks import count_marks, escape_marks, split_marks


@pytest.mark.parametrize("text", ["", "<image>", r"\<image>", r"a \\<image> b", "<image><image>", "<im", "\\"])
def test_what_is_escaped_marks_nothing_and_comes_back(text):
    assert count_marks(escape_marks(text)) == 0
    assert split_marks(escape_marks(text)) == [text]


def test_marks_part_a_text():
    assert split_marks(r"a<image>b\<image>c<image>") == ["a", "b<image>c", ""]
    assert count_marks(r"a<image>b\<image>c<image>") == 2
