"""Masks as pictures: a line for each query, x where it may attend to that key."""

import numpy as np

from mmjax.nn.masks import attention_mask, cross_mask, steps, window_mask


def picture(mask):
    return ["".join(".x"[int(seen)] for seen in row) for row in mask]


def self_attention(causal, segments=None):
    """The picture of one row's mask. causal, segments: strings of digits, a token each."""
    causal = np.array([[int(digit) for digit in causal]])
    segments = np.ones_like(causal) if segments is None else np.array([[int(digit) for digit in segments]])
    step = steps(causal)
    return picture(attention_mask(step, segments, step, segments)[0])


def test_causal_text():
    assert self_attention("1111") == [
        "x...",
        "xx..",
        "xxx.",
        "xxxx",
    ]


def test_a_bidirectional_picture_in_causal_text():
    """Tokens 1, 2 and 3 are one picture: each sees all three."""
    assert self_attention("110011") == [
        "x.....",
        "xxxx..",
        "xxxx..",
        "xxxx..",
        "xxxxx.",
        "xxxxxx",
    ]


def test_prefix_lm():
    """The first three tokens are a prompt that sees itself whole."""
    assert self_attention("00011") == [
        "xxx..",
        "xxx..",
        "xxx..",
        "xxxx.",
        "xxxxx",
    ]


def test_packed_examples_and_padding():
    """Two examples side by side do not see each other; nobody sees padding, and padding sees nobody."""
    assert self_attention("1111111", segments="1122200") == [
        "x......",
        "xx.....",
        "..x....",
        "..xx...",
        "..xxx..",
        ".......",
        ".......",
    ]


def test_a_sliding_window_of_two_in_packed_rows():
    """A bidirectional picture is tokens 1 to 3: each sees all that follows in it, but not far back."""
    step, segments = steps(np.array([[1, 1, 0, 0, 1, 1, 1]])), np.array([[1, 1, 1, 1, 1, 2, 2]])
    positions = np.array([[0, 1, 2, 3, 4, 0, 1]])
    mask = window_mask(attention_mask(step, segments, step, segments), positions, positions, 2)
    assert picture(mask[0]) == [
        "x......",
        "xxxx...",
        ".xxx...",
        "..xx...",
        "...xx..",
        ".....x.",
        ".....xx",
    ]


def test_a_query_beside_a_cache():
    """One new token of step 3 looks at cells: two empty ones, and one of padding, are left out."""
    cell_steps, cell_segments = np.array([[1, 2, 0, 3, 0, 0]]), np.array([[1, 1, 0, 1, 0, 0]])
    mask = attention_mask(np.array([[3]]), np.array([[1]]), cell_steps, cell_segments)
    assert picture(mask[0]) == ["xx.x.."]


def test_cross_attention_looks_at_the_last_picture_only():
    """Text, picture 0, text, picture 1, text; two tokens a picture; slot 2 is empty."""
    visible, valid = np.array([[-1, 0, 0, 1, 1]]), np.array([[True, True, False]])
    assert picture(cross_mask(visible, valid, tokens=2)[0]) == [
        "......",
        "xx....",
        "xx....",
        "..xx..",
        "..xx..",
    ]


def test_cross_attention_never_looks_into_an_empty_slot():
    assert picture(cross_mask(np.array([[0, 1]]), np.array([[False, True]]), tokens=3)[0]) == ["......", "...xxx"]
