"""Beam search: exact where it is exhaustive, greedy where it is narrow, honest about its scores."""

import itertools

import jax
import numpy as np
import pytest
from tiny import LENGTHS, continued, forward_log_probs, prompts, row_of, tiny_model

from mmjax.inference.beam import beam
from mmjax.inference.sample import generate

STOP = 2


def search(model, params, batch, *, beams, max_new, stop=(STOP,), length_penalty=0.0):
    found = beam(
        model, params, batch, beams=beams, max_new=max_new, stop=stop, pad=0, length_penalty=length_penalty
    )
    return jax.tree.map(np.asarray, found)


def greedy(model, params, batch, max_new, stop=(STOP,)):
    settings = dict(max_new=max_new, temperature=0, top_k=0, top_p=1, stop=stop, pad=0)
    return tuple(np.asarray(x) for x in generate(model, params, batch, jax.random.key(0), **settings))


def score(model, params, batch, tokens, lengths, stop):
    """log p of each row's continuation, with its stop token if it has one, by the full forward pass."""
    written = tokens.copy()
    ended = lengths < tokens.shape[1]
    written[ended, lengths[ended]] = stop
    log_probs = forward_log_probs(model, params, continued(batch, written))
    prompt = (batch.segments > 0).sum(1)
    return np.array(
        [
            sum(log_probs[row, prompt[row] - 1 + k, written[row, k]] for k in range(lengths[row] + ended[row]))
            for row in range(len(tokens))
        ]
    )


def enumerate_all(model, params, batch, vocab, max_new, length_penalty):
    """Every continuation of one prompt: [(score, tokens)], best first."""
    every = np.array(list(itertools.product(range(vocab), repeat=max_new)))
    many = jax.tree.map(lambda x: np.repeat(x, len(every), axis=0), batch)
    log_probs = forward_log_probs(model, params, continued(many, every))
    start = batch.tokens.shape[1] - 1
    scores = {}
    for row, tokens in enumerate(every):
        steps = [log_probs[row, start + k, token] for k, token in enumerate(tokens)]
        length = list(tokens).index(STOP) if STOP in tokens else max_new
        scored = min(length + 1, max_new)
        scores[tuple(tokens[:length].tolist())] = sum(steps[:scored]) / scored**length_penalty
    return sorted(((score, tokens) for tokens, score in scores.items()), reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_search_wide_enough_equals_enumeration(length_penalty):
    vocab, max_new, beams = 5, 3, 80
    model, params = tiny_model("splice", vocab=vocab)
    batch = prompts("splice", LENGTHS, vocab=vocab)
    found = search(model, params, batch, beams=beams, max_new=max_new, length_penalty=length_penalty)
    for row in range(3):
        every = enumerate_all(model, params, row_of(batch, row), vocab, max_new, length_penalty)
        for k, (score, tokens) in enumerate(every[:10]):
            assert found.scores[row, k] == pytest.approx(score, abs=1e-4)
            assert found.tokens[row, k, : found.lengths[row, k]].tolist() == list(tokens)


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_one_beam_is_greedy(fusion):
    model, params = tiny_model(fusion)
    batch = prompts(fusion, LENGTHS)
    free, _ = greedy(model, params, batch, 6)
    stop = (int(free[0, 3]),)
    tokens, lengths = greedy(model, params, batch, 6, stop)
    found = search(model, params, batch, beams=1, max_new=6, stop=stop)
    np.testing.assert_array_equal(found.tokens[:, 0], tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], lengths)


@pytest.mark.parametrize("fusion", ["splice", "xattn"])
def test_scores_are_log_probabilities_and_beat_greedy(fusion):
    model, params = tiny_model(fusion)
    batch = prompts(fusion, [9, 14, 6, 8, 11, 7, 12, 10])
    found = search(model, params, batch, beams=3, max_new=6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    best = score(model, params, batch, found.tokens[:, 0], found.lengths[:, 0], STOP)
    np.testing.assert_allclose(found.scores[:, 0], best, atol=1e-4)
    plain = score(model, params, batch, *greedy(model, params, batch, 6), STOP)
    assert (best >= plain - 1e-4).all() and (best > plain + 1e-2).any()


def test_a_row_does_not_depend_on_the_batch_around_it(splice):
    model, params = splice
    batch = prompts("splice", LENGTHS)
    together = search(model, params, batch, beams=3, max_new=6)
    assert np.isneginf(together.scores[3]).all()
    for row in range(3):
        alone = search(model, params, row_of(batch, row), beams=3, max_new=6)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)


def test_bad_settings_are_refused(splice):
    for wrong in (dict(beams=0, max_new=3), dict(beams=2, max_new=0)):
        with pytest.raises(ValueError, match="at least 1"):
            search(*splice, prompts("splice", [9]), **wrong)
