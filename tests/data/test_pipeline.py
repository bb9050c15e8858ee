"""From files to batches: rows are their examples side by side, the same for any process, worker and resume."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from materials import conversation, noise, picture, spec_of, truncated, write_folder

from mmjax.data import pipeline
from mmjax.data.pipeline import make_dataset
from mmjax.data.quarantine import TooManyBadRecords
from mmjax.types import Batch

NO_SLOTS = dict(slots=0, size=8, resize="stretch", max_pixels=100)
RECORDS = [conversation(n, turns=1 + n % 3, pictures=n % 3, words=1 + n % 4) for n in range(23)]


def dataset(path, tokenizer, *, rows=12, splice=True, seed=0, **changes):
    return make_dataset(
        spec_of(path, **{"length": 128, **changes}),
        tokenizer,
        span=3 if splice else 1,
        splice=splice,
        rows=rows,
        seed=seed,
        data_dir="",
        quarantine=Path(path).parent / "quarantine.jsonl",
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), RECORDS)


def assert_same(one: Batch, two: Batch):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_shapes_and_types(path, sentencepiece):
    batch = next(dataset(path, sentencepiece).batches(4))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), batch)
    for field in ("tokens", "segments", "positions", "causal"):
        assert getattr(shapes, field) == ((4, 128), "int32")
    assert shapes.loss_weight == ((4, 128), "float32")
    media = shapes.media["image"]
    assert media.values == ((4, 4, 8, 8, 3), "uint8") and media.valid == ((4, 4), "bool")
    assert media.slot == media.visible == ((4, 128), "int32")


@pytest.mark.parametrize("splice", [True, False])
def test_a_row_is_its_examples_side_by_side(path, sentencepiece, splice):
    data = dataset(path, sentencepiece, splice=splice, length=400)
    crowded = 0
    for r in range(len(data)):
        row, begin, media = data.row(r), 0, 0
        image = row.media["image"]
        for number, (_, index) in enumerate(data.plan.row(r), 1):
            one = data.chat.encode(data.feeds[0].source[index])
            here = slice(begin, begin + len(one))
            for name in ("tokens", "loss_weight", "causal"):
                np.testing.assert_array_equal(getattr(row, name)[here], getattr(one, name))
            np.testing.assert_array_equal(row.segments[here], number)
            np.testing.assert_array_equal(row.positions[here], np.arange(len(one)))
            where = one.slot >= 0
            np.testing.assert_array_equal(image.slot[here] - one.slot, where * media * data.chat.span)
            np.testing.assert_array_equal(image.visible[here] - one.visible, (one.visible >= 0) * media)
            for k in range(one.media_count):
                expected = int(RECORDS[index]["id"][1:]) * 10 + k
                pixel = image.values[media + k, 3, 3].astype(int)
                assert pixel[0] + 256 * pixel[1] == expected, "the right picture stands at its slot"
            crowded += media > 0 and one.media_count > 0
            begin, media = begin + len(one), media + one.media_count
        assert not row.segments[begin:].any() and not row.loss_weight[begin:].any()
        assert image.valid.tolist() == [k < media for k in range(4)]
        assert (image.slot[begin:] == -1).all() and (image.visible[begin:] == -1).all()
    assert crowded, "no row had pictures of two examples"
    assert 0 < data.fill <= 1


def test_order_is_the_same_for_any_number_of_processes(path, sentencepiece):
    data = dataset(path, sentencepiece)
    whole = list(data.batches(4))
    assert len(whole) == 3
    for processes in (2, 4):
        parts = [list(data.batches(4, process=p, processes=processes)) for p in range(processes)]
        for step, expected in enumerate(whole):
            shares = [part[step] for part in parts]
            assert_same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *shares), expected)
    with pytest.raises(ValueError, match="3 processes"):
        next(data.batches(4, processes=3))


def test_resume_at_any_step(path, sentencepiece):
    whole = list(dataset(path, sentencepiece).batches(4))
    for start in range(4):
        rest = list(dataset(path, sentencepiece, rows=16 if start < 3 else 12).batches(4, start=start))
        for one, two in zip(rest, whole[start:], strict=False):
            assert_same(one, two)
        assert len(rest) == (4 if start < 3 else 3) - start


def test_workers_change_nothing(path, sentencepiece):
    alone = list(dataset(path, sentencepiece, threads=2).batches(4, start=1))
    shared = list(dataset(path, sentencepiece, workers=2).batches(4, start=1))
    assert len(alone) == len(shared) == 2
    for one, two in zip(alone, shared, strict=True):
        assert_same(one, two)


def test_what_is_cut_is_said(path, sentencepiece, caplog):
    dataset(path, sentencepiece, rows=4, length=400)
    assert not caplog.records
    dataset(path, sentencepiece, rows=4, length=100)
    whole = dataset(path, sentencepiece, rows=None, length=400)
    longer = sum(len(whole.chat.encode(whole.feeds[0].source[k])) > 100 for k in range(23))
    assert f"{longer} of 23 samples" in caplog.text and longer > 0


def test_one_pass_for_evaluation(path, sentencepiece):
    data = dataset(path, sentencepiece, rows=None)
    assert sorted(data.plan.sample.tolist()) == list(range(23))
    batches = list(data.batches(7))
    assert len(batches) * 7 > len(data) > len(batches) * 7 - 7
    rows = [jax.tree.map(lambda leaf, k=k: leaf[k], batch) for batch in batches for k in range(7)]
    for r in range(len(data)):
        assert_same(rows[r], data.row(r))
    for empty in rows[len(data) :]:
        assert not empty.segments.any() and not empty.loss_weight.any() and not empty.media["image"].valid.any()


def test_an_empty_source_is_explained(tmp_path, sentencepiece):
    with pytest.raises(ValueError, match=r"data\.sources\.main\.path: .*data\.jsonl' holds no record"):
        dataset(write_folder(tmp_path, []), sentencepiece)


def test_text_only_rows(tmp_path, sentencepiece):
    text = write_folder(tmp_path, [conversation(n, pictures=0) for n in range(4)])
    media = dict(slots=0, size=8, resize="stretch", max_pixels=100)
    batch = next(dataset(text, sentencepiece, rows=2, media=media).batches(2))
    assert batch.media == {} and batch.loss_weight.any()
    empty = next(dataset(text, sentencepiece, rows=2).batches(2)).media["image"]
    assert not empty.valid.any() and empty.values.shape == (2, 4, 8, 8, 3)


def quarantined(path):
    lines = (Path(path).parent / "quarantine.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


def test_bad_records_are_named_and_the_rest_is_used(tmp_path, sentencepiece):
    empty = conversation(3)
    empty["conversations"][1]["value"] = "  "
    marks = conversation(4)
    marks["conversations"][0]["value"] = "what?"
    records = [conversation(0), '{"id":', conversation(2) | {"image": ["../x.png"]}, empty, marks]
    path = write_folder(tmp_path, [*records, conversation(5, words=400), conversation(6)])
    data = dataset(path, sentencepiece, rows=None, too_long="refuse")
    reasons = quarantined(path)
    assert sorted(data.plan.sample.tolist()) == [0, 6]
    assert data.quarantine.counts() == {"main": 5} and len(reasons) == 5
    for id, reason in (
        ("data.jsonl:2", "not valid JSON"),
        ("data.jsonl:3:r2", "leaves"),
        ("data.jsonl:4:r3", "empty answer"),
        ("data.jsonl:5:r4", "names 1 picture, but no turn marks its place"),
        ("data.jsonl:6:r5", "a row takes 128"),
    ):
        assert reason in reasons[id]
    with pytest.raises(TooManyBadRecords, match="main"):
        dataset(path, sentencepiece, max_refused=0.5, too_long="refuse")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_fails_in_training_loses_its_example_alone(tmp_path, sentencepiece, workers):
    """Found only when it is decoded: the row keeps its shape and its other examples."""
    path = write_folder(tmp_path, [conversation(n, pictures=1) for n in range(4)])
    (tmp_path / "0-0.png").write_bytes(truncated(picture(0)))
    (tmp_path / "1-0.png").write_bytes(b"")
    data = dataset(path, sentencepiece, rows=None, length=256, workers=workers)
    whole = dataset(
        write_folder(tmp_path / "whole", [conversation(n) for n in range(4)]), sentencepiece, rows=None
    )
    order = [index for _, index in data.plan.row(0)]
    assert len(order) == 4 and data.quarantine.counts() == {"main": 0}
    (batch,) = data.batches(1)
    row = jax.tree.map(lambda leaf: leaf[0], batch)
    good = [number for number, index in enumerate(order) if index >= 2]
    assert np.flatnonzero(row.media["image"].valid).tolist() == good
    assert set(row.segments.tolist()) == {0, 1, 2, 3, 4}
    assert set(row.segments[row.loss_weight > 0].tolist()) == {number + 1 for number in good}
    for number in good:
        one = whole.chat.encode(whole.feeds[0].source[order[number]])
        here = row.segments == number + 1
        np.testing.assert_array_equal(row.tokens[here], one.tokens)
        np.testing.assert_array_equal(row.loss_weight[here], one.loss_weight)
    assert data.quarantine.counts() == {"main": 2}
    reasons = quarantined(path)
    assert "cannot be decoded" in reasons["data.jsonl:1:r0"] and "0 bytes" in reasons["data.jsonl:2:r1"]


def test_a_picture_that_is_gone_in_training_leaves_its_row_sound(tmp_path, sentencepiece):
    path = write_folder(tmp_path, [conversation(n, pictures=1) for n in range(3)])
    data = dataset(path, sentencepiece, rows=None, length=256)
    (tmp_path / "1-0.png").unlink()
    row = data.row(0)
    assert row.media["image"].valid.tolist() == [True, True, False, False]
    assert len(set(row.segments.tolist())) == 3 and "there is no picture" in quarantined(path)["data.jsonl:2:r1"]


def test_a_sample_that_grew_since_it_was_measured_is_left_out(tmp_path, sentencepiece):
    path = write_folder(tmp_path, [conversation(n, pictures=0) for n in range(2)])
    data = dataset(path, sentencepiece, rows=None, length=110)
    assert len(data) == 1
    grown = json.dumps(conversation(1, pictures=0, words=40)).encode()
    data.feeds[0].source._records[1] = (2, grown)
    assert set(data.row(0).segments.tolist()) in ({0, 1}, {0, 2})
    assert "has grown" in quarantined(path)["data.jsonl:2:r1"]


def test_measuring_in_processes_changes_nothing(tmp_path, sentencepiece, monkeypatch):
    path = write_folder(tmp_path, [*RECORDS, "{", *RECORDS])
    alone = dataset(path, sentencepiece)
    monkeypatch.setattr(pipeline, "PROCESSES_FROM", 1)
    shared = dataset(path, sentencepiece, workers=1)
    assert shared.fingerprint == alone.fingerprint
    assert shared.quarantine.counts() == alone.quarantine.counts() == {"main": 1}
    assert "not valid JSON" in quarantined(path)["data.jsonl:24"]


def test_augmentation_depends_on_seed_and_row_alone(tmp_path, sentencepiece):
    path = write_folder(tmp_path, [conversation(n, pictures=1) for n in range(6)])
    for n in range(6):
        noise((8, 8), n).save(tmp_path / f"{n}-0.png")
    main = dict(path=path, root="", weight=1.0, augment="dihedral")
    same = [dataset(path, sentencepiece, sources=dict(main=main)).row(5) for _ in range(2)]
    assert_same(*same)
    rows = dataset(path, sentencepiece, sources=dict(main=main))
    plain = dataset(path, sentencepiece)
    turned = [(rows.row(r).media["image"].values != plain.row(r).media["image"].values).any() for r in range(8)]
    assert any(turned), "no picture was turned"
    for r in range(3):
        np.testing.assert_array_equal(rows.row(r).tokens, plain.row(r).tokens)


def test_sources_with_their_own_template(path, tmp_path, sentencepiece):
    other = write_folder(tmp_path, [conversation(n) for n in range(5)])
    sources = dict(
        main=dict(path=path, root="", weight=1.0),
        captions=dict(path=other, root="", weight=1.0, template="plain"),
        left_out=None,
    )
    data = dataset(path, sentencepiece, sources=sources, pack=False)
    kinds = set()
    for r in range(len(data)):
        ((source, _),) = data.plan.row(r)
        first = data.row(r).tokens[0]
        assert first == (sentencepiece.special("<|im_start|>"), sentencepiece.bos)[source]
        kinds.add(source)
    assert kinds == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lenght=3), r"data: no key 'lenght'; did you mean 'length'"),
        (dict(media=dict(slots=1, size=8, resize="stretch", max_pixel=1)), "data.media: .*'max_pixels'"),
        (dict(media=dict(slots=1, size=8, resize="crop")), "data.media: requires max_pixels"),
        (dict(media=dict(slots=1, size=8, resize="zoom", max_pixels=9)), "data.media.resize: 'zoom' is none of"),
        (dict(sources=dict(a=dict(path="x.json", root=""))), "data.sources.a: requires weight"),
        (dict(sources=dict(a=dict(path="x.json", root="", weight=1, augment="spin"))), "augment: no 'spin'"),
        (dict(sources={}), "data.sources: there are none"),
        (dict(template="chatlm"), "did you mean 'chatml'"),
        (dict(media=NO_SLOTS, splice=False), r"data\.media\.slots: is 0; cross-attention requires 1"),
        (dict(too_long="drop"), "too_long: no 'drop'; did you|too_long: no 'drop'; known"),
        (dict(length="64"), r"data\.length: '64' is not of type int"),
        (dict(pack=1), r"data\.pack: 1 is not of type bool"),
        (dict(media=None), r"data\.media: None is not of type Mapping"),
        (dict(max_refused=float("nan")), r"max_refused: nan is no finite number"),
        (
            dict(sources=dict(a=dict(path=None, root="", weight=1.0))),
            r"data\.sources\.a\.path: None is not of type str",
        ),
        (
            dict(sources=dict(a=dict(path="a", root="", weight=True))),
            r"data\.sources\.a\.weight: True is not of type float",
        ),
        (dict(sources=dict(a=dict(path="a", root="", weight=float("inf")))), "weight: inf is no finite number"),
        (dict(sources=dict(a=dict(path="none.jsonl", root="", weight=1.0))), "data.sources.a.path: there is no"),
    ],
)
def test_mistakes_in_the_spec_are_explained(path, sentencepiece, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dataset(path, sentencepiece, **changes)
