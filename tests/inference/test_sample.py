"""Sampling: equal to teacher forcing, row by row, exact filters, one program for all temperatures."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import LENGTHS, continued, forward_log_probs, prompts, random_params, row_of, tiny_model

from mmjax.data.buckets import bucket
from mmjax.inference import sample
from mmjax.inference.beam import beam
from mmjax.inference.program import pad_tokens
from mmjax.model import MultimodalLM

GREEDY = dict(temperature=0, top_k=0, top_p=1)
WARM = dict(temperature=1.0, top_k=0, top_p=0.9)


def run(model, params, batch, *, max_new=6, seed=0, stop=(), pad=0, **settings):
    rng = jax.random.key(seed)
    stop = [*stop, -1, -1, -1, -1][:4]
    out = sample.generate(model, params, batch, rng, max_new=max_new, stop=stop, pad=pad, **settings)
    return tuple(np.asarray(x) for x in out)


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(fusion):
    model, params = tiny_model(fusion)
    batch = prompts(fusion, LENGTHS)
    tokens, lengths = run(model, params, batch, **GREEDY)
    assert lengths.tolist() == [6, 6, 6, 0]
    log_probs = forward_log_probs(model, params, continued(batch, tokens))
    for row, length in enumerate(LENGTHS[:3]):
        np.testing.assert_array_equal(log_probs[row, length - 1 : length + 5].argmax(-1), tokens[row])


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_a_row_does_not_depend_on_the_batch_around_it(fusion):
    model, params = tiny_model(fusion)
    batch = prompts(fusion, LENGTHS)
    for settings in (GREEDY, WARM):
        together, _ = run(model, params, batch, **settings)
        for row in range(3):
            alone, _ = run(model, params, row_of(batch, row), rows=[row], **settings)
            np.testing.assert_array_equal(alone[0], together[row])


def test_the_picture_matters(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    other = batch.replace(media=prompts("splice", LENGTHS, seed=1).media)
    assert (run(model, params, batch, **GREEDY)[0] != run(model, params, other, **GREEDY)[0]).any()


def test_ended_rows_stay_ended_and_empty_rows_stay_empty(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    free, lengths = run(model, params, batch, pad=39, **GREEDY)
    assert lengths.tolist() == [6, 6, 6, 0] and (free[3] == 39).all()
    stop = free[0, 2]
    tokens, lengths = run(model, params, batch, stop=[stop], pad=39, **GREEDY)
    for row in range(3):
        (hits,) = np.nonzero(free[row] == stop)
        length = hits[0] if len(hits) else 6
        assert lengths[row] == length
        np.testing.assert_array_equal(tokens[row, :length], free[row, :length])
        assert (tokens[row, length:] == 39).all()


def test_the_loop_stops_when_all_rows_have_ended(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    first = run(model, params, batch, **GREEDY)[0][:, 0]
    rule = sample.make_rule(4, jax.random.key(0), stop=first, pad=0, **GREEDY)
    assert len(list(sample.stream(model, params, batch, rule, 6))) == 1


def test_randomness_follows_seed_row_and_step(splice):
    model, params = splice
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 4, axis=0), prompts("splice", [9]))
    hot = dict(temperature=1.5, top_k=0, top_p=1)
    tokens, _ = run(model, params, batch, **hot)
    assert len({tuple(row) for row in tokens}) == 4
    np.testing.assert_array_equal(tokens, run(model, params, batch, **hot)[0])
    assert (tokens != run(model, params, batch, seed=1, **hot)[0]).any()
    twins, _ = run(model, params, batch, rows=[7, 7, 7, 7], **hot)
    assert (twins == twins[0]).all()


def test_temperature_of_each_row(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    mixed, _ = run(model, params, batch, temperature=[0, 1.5, 0, 0], top_k=0, top_p=1)
    greedy, _ = run(model, params, batch, **GREEDY)
    np.testing.assert_array_equal(mixed[[0, 2]], greedy[[0, 2]])
    assert (mixed[1] != greedy[1]).any()


def test_stream_gives_the_tokens_of_generate(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    tokens, lengths = run(model, params, batch, stop=[1, 2, 3, 4], **WARM)
    rule = sample.make_rule(4, jax.random.key(0), stop=[1, 2, 3, 4], pad=0, **WARM)
    steps = list(sample.stream(model, params, batch, rule, 6))
    np.testing.assert_array_equal(np.stack([token for token, _ in steps], 1), tokens[:, : len(steps)])
    np.testing.assert_array_equal(sum(~done for _, done in steps), lengths)


def test_one_program_for_all_settings_and_lengths_of_a_bucket():
    traces = []

    class Counting(MultimodalLM):
        def prefill(self, *args):
            traces.append(args)
            return super().prefill(*args)

    model, params = tiny_model("splice")
    model = Counting(**vars(model))
    for length, temperature, top_p, seed in [(9, 0, 1, 0), (14, 0.7, 1, 1), (12, 1.3, 0.5, 2), (9, 0.0, 0.9, 3)]:
        batch = prompts("splice", [length, 8])
        run(model, params, batch, temperature=temperature, top_k=0, top_p=top_p, seed=seed, stop=[length])
    assert len(traces) == 1
    run(model, params, prompts("splice", [17, 8]), **GREEDY)
    assert len(traces) == 2  # another bucket


def reference_filter(logits, top_k, top_p):
    """One row, as the papers say it: plain loops over a sorted list."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[:top_k] if top_k else order
    weights = np.exp(logits[kept] - logits.max())
    weights = weights / weights.sum()
    nucleus, total = [], 0.0
    for token, weight in zip(kept, weights, strict=True):
        nucleus.append(token)
        total += weight
        if total >= top_p:
            break
    return sorted(nucleus)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 60])
def test_filters_against_a_plain_reference(top_k):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 50)).astype(np.float32)
    top_p = np.array([1.0, 0.99, 0.9, 0.5, 0.1, 1e-6], np.float32)
    filtered = np.asarray(sample.filter_logits(logits, top_k, top_p))
    for row in range(6):
        kept = np.flatnonzero(np.isfinite(filtered[row]))
        assert kept.tolist() == reference_filter(logits[row].astype(np.float64), top_k, top_p[row])
        np.testing.assert_array_equal(filtered[row, kept], logits[row, kept])


def test_draws_follow_the_filtered_distribution():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    rows = 20_000
    rule = sample.make_rule(rows, jax.random.key(0), temperature=0.5, top_k=3, top_p=0.99, stop=[], pad=0)
    drawn = jax.jit(sample.choose)(np.broadcast_to(logits, (rows, 4)), rule, 0)
    expected = np.array([0.16, 0.09, 0.04, 0]) / 0.29
    counts = np.bincount(np.asarray(drawn), minlength=4)
    deviation = np.abs(counts - rows * expected) / np.sqrt(rows * expected * (1 - expected) + 1e-9)
    assert (deviation[:3] < 4).all() and counts[3] == 0


def test_buckets_grow_by_half_at_most():
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 32, 33, 49, 100)] == [16, 16, 24, 24, 32, 32, 48, 64, 128]
    assert all(n <= bucket(n) < 1.5 * n + 1 for n in range(16, 5000))


def test_bad_settings_are_refused(splice):
    model, params = splice
    batch = prompts("splice", [9])
    for wrong, message in [
        (dict(temperature=-1), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(top_p=1.5), "top_p"),
        (dict(top_k=-1), "top_k"),
        (dict(max_new=0), "max_new"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(model, params, batch, **{**GREEDY, **wrong})
    with pytest.raises(ValueError, match="do not fit"):
        pad_tokens(batch, 8)


def test_no_more_tokens_than_learned_positions():
    model, _ = tiny_model("splice")
    model = dataclasses.replace(model, backbone=model.backbone.clone(max_positions=20))
    params = random_params(jax.eval_shape(model.init, jax.random.key(0)), seed=0)
    batch = prompts("splice", LENGTHS)  # of 14 tokens at most
    assert run(model, params, batch, max_new=7, **GREEDY)[1].tolist() == [7, 7, 7, 0]
    for refused in (
        lambda: run(model, params, batch, max_new=8, **GREEDY),
        lambda: beam(model, params, batch, beams=2, max_new=8, stop=[], pad=0, length_penalty=0.0),
    ):
        with pytest.raises(ValueError, match=r"21 positions; model.backbone.max_positions is 20"):
            refused()
