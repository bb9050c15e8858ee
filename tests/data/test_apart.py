"""turns='apart': each question an example of its own, all about one picture that stands in the row once."""

import numpy as np
import pytest
from tiny_run import config, write_data

from mmjax.data.pipeline import make_dataset
from mmjax.data.quarantine import BadRecord
from mmjax.data.rows import _questions
from mmjax.data.tokenizer import SentencePiece
from mmjax.types import Sample, Turn

SPAN = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    write_data(folder)
    return folder


def dataset(folder, turns, length=256, too_long="truncate"):
    spec = config(folder)["sft"]["data"] | dict(length=length, pack=False, too_long=too_long, max_refused=1.0)
    spec["sources"]["main"]["turns"] = turns
    tokenizer = SentencePiece(folder / "tokenizer.model")
    settings = dict(span=SPAN, splice=True, rows=None, seed=0, data_dir="", quarantine=folder / "q.jsonl")
    return make_dataset(spec, tokenizer, **settings)


def rows_of(data, id):
    return [data.row(r) for r in range(len(data)) if _id(data, r) == id]


def _id(data, r):
    ((source, index),) = data.plan.row(r)
    return data.feeds[source].source[index].id.rpartition(":")[2]


def test_questions_are_examples_that_share_a_picture(folder):
    (row,) = rows_of(dataset(folder, "apart"), "square-1")  # a picture and three questions
    (together,) = rows_of(dataset(folder, "together"), "square-1")
    image = row.media["image"]
    assert image.valid.tolist() == [True, False]
    assert row.segments.max() == 3 and together.segments.max() == 1
    for segment in (1, 2, 3):
        here = row.segments == segment
        assert row.positions[here].tolist() == list(range(here.sum()))
        assert image.slot[here][image.slot[here] >= 0].tolist() == list(range(SPAN))
        assert row.loss_weight[here].any()
    # The same answers are learned, and the first question is written as in the whole conversation.
    assert sorted(row.tokens[row.loss_weight > 0]) == sorted(together.tokens[together.loss_weight > 0])
    first = (row.segments == 1).sum()
    np.testing.assert_array_equal(row.tokens[:first], together.tokens[:first])


def test_questions_that_do_not_fit_are_left_out_whole(folder):
    (whole,) = rows_of(dataset(folder, "apart"), "square-1")
    two = int((whole.segments > 0).sum() - (whole.segments == 3).sum())
    (row,) = rows_of(dataset(folder, "apart", length=two + 3), "square-1")
    np.testing.assert_array_equal(row.tokens[:two], whole.tokens[:two])
    assert row.segments.max() == 2 and not row.tokens[two:].any()
    assert not rows_of(dataset(folder, "apart", length=two + 3, too_long="refuse"), "square-1")


def test_a_picture_in_a_later_question_is_refused():
    turns = (
        Turn("user", "Hello."),
        Turn("assistant", "Hi."),
        Turn("user", "<image> And?"),
        Turn("assistant", "x"),
    )
    with pytest.raises(BadRecord, match="all pictures in the first question"):
        _questions(Sample("later", turns, ("a.png",)))
