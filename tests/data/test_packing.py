"""The plan of rows: deterministic, complete, within budget, the same however much of it is asked for."""

from collections import Counter

import numpy as np
import pytest

from mmjax.data.packing import Lengths, make_plan


def lengths(n, seed=0, weight=1.0, longest=50, media=3):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, longest + 1, n).astype(np.int32)
    return Lengths(tokens, rng.integers(0, media + 1, n).astype(np.int32), weight)


def rows_of(plan):
    return [plan.row(r) for r in range(len(plan))]


def test_same_inputs_same_plan_and_other_seed_another():
    sources = [lengths(50), lengths(30, 1)]
    one, two = (make_plan(sources, 20, 64, 4, seed=3) for _ in range(2))
    assert rows_of(one) == rows_of(two) and one.fingerprint == two.fingerprint
    other = make_plan(sources, 20, 64, 4, seed=4)
    assert rows_of(one) != rows_of(other) and one.fingerprint != other.fingerprint


@pytest.mark.parametrize("pack", [True, False])
def test_rows_do_not_depend_on_how_many_are_asked_for(pack):
    sources = [lengths(50), lengths(30, 1, weight=2.0)]
    few, many = (make_plan(sources, rows, 64, 4, seed=0, pack=pack) for rows in (7, 300))
    assert rows_of(many)[:7] == rows_of(few) and len(many) == 300
    assert few.fingerprint == many.fingerprint


@pytest.mark.parametrize("pack", [True, False])
def test_one_pass_has_every_usable_sample_once(pack):
    sources = [lengths(200), lengths(77, 1, weight=0.0)]
    sources[0].tokens[[3, 9]] = 0  # refused
    plan = make_plan(sources, None, 64, 4, seed=0, pack=pack)
    seen = Counter(entry for row in rows_of(plan) for entry in row)
    expected = {(0, i) for i in range(200) if i not in (3, 9)} | {(1, i) for i in range(77)}
    assert set(seen) == expected and set(seen.values()) == {1}


def test_epochs_repeat_no_sample_before_all_have_come():
    """Rows are filled side by side, so an epoch ends within the rows that are open at once."""
    plan = make_plan([lengths(500)], 400, 64, 4, seed=0)
    counts = np.bincount(plan.sample, minlength=500)
    assert counts.max() - counts.min() <= 2
    unpacked = make_plan([lengths(500)], 1500, 64, 4, seed=0, pack=False)
    for epoch in range(3):
        assert sorted(unpacked.sample[500 * epoch : 500 * (epoch + 1)]) == list(range(500))
    assert unpacked.sample[:500].tolist() != unpacked.sample[500:1000].tolist()


def test_budgets_are_kept_and_rows_are_well_filled():
    sources = [lengths(1000)]
    plan = make_plan(sources, None, 128, 8, seed=0)
    for row in rows_of(plan):
        assert row
        assert sum(sources[0].tokens[i] for _, i in row) <= 128
        assert sum(sources[0].media[i] for _, i in row) <= 8
    assert plan.fill == pytest.approx(sources[0].tokens.sum() / (128 * len(plan)))
    assert plan.fill > 0.9


def test_no_sample_waits_for_ever():
    """Samples that leave much room but no slot: their rows must be closed all the same."""
    rng = np.random.default_rng(0)
    sources = [Lengths(rng.integers(1, 60, 300).astype(np.int32), (np.arange(300) % 3).astype(np.int32))]
    plan = make_plan(sources, 600, 64, 2, seed=0)
    assert np.bincount(plan.sample, minlength=300).min() >= 1


def test_mixture_follows_the_weights_and_each_source_goes_on_where_it_was():
    sources = [lengths(100, 0, 3.0), lengths(300, 1, 1.0), lengths(50, 2, 0.0)]
    plan = make_plan(sources, 400, 64, 4, seed=0, pack=False)  # one epoch: as many as the sources hold
    counts = np.bincount(plan.source, minlength=3)
    assert counts[2] == 0 and counts[0] == pytest.approx(3 * counts[1], abs=60)
    longer = make_plan(sources, 1350, 64, 4, seed=0, pack=False)  # three epochs of 450
    counts = np.bincount(longer.source, minlength=3)
    assert counts[0] == 1014 and counts[1] == 336 and counts[2] == 0
    first = longer.sample[longer.source == 1][:300]
    assert sorted(first) == list(range(300)), "a permutation goes on over the epochs of the mixture"


def test_fingerprint_sees_every_input():
    base = dict(rows=5, row_length=64, media_slots=4, seed=0, pack=True)
    sources = [lengths(50)]
    prints = {make_plan(sources, **base).fingerprint}
    for change in (dict(row_length=65), dict(media_slots=5), dict(seed=1), dict(pack=False)):
        prints.add(make_plan(sources, **base | change).fingerprint)
    prints.add(make_plan([lengths(50, weight=2.0)], **base).fingerprint)
    prints.add(make_plan([lengths(51)], **base).fingerprint)
    changed = lengths(50)
    changed.tokens[7] += 1
    prints.add(make_plan([changed], **base).fingerprint)
    assert len(prints) == 8


def test_nothing_to_train_on():
    empty = Lengths(np.zeros(4, np.int32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="all were refused"):
        make_plan([empty], 3, 64, 4, seed=0)
    with pytest.raises(ValueError, match="weight above 0"):
        make_plan([empty, lengths(4, weight=0.0)], 3, 64, 4, seed=0)
