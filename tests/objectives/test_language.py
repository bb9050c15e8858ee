"""The chunked cross-entropy against the plain one, which has the logits of all positions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mmjax.objectives.language import CHUNK, next_token
from mmjax.types import Batch, Output

VOCAB, WIDTH = 11, 6
RNG = np.random.default_rng(0)
PARAMS = {
    "table": RNG.normal(size=(VOCAB, WIDTH)).astype(np.float32),
    "head": RNG.normal(size=(WIDTH, VOCAB)).astype(np.float32),
}


class BagOfOne:
    """The least of a language model: a token's hidden state is its row of a table."""

    def __init__(self, params):
        self.params = params

    def __call__(self, batch):
        return Output(hidden=self.params["table"][batch.tokens])

    def logits(self, hidden):
        return hidden @ self.params["head"]


def make_batch(length, supervised, rows=3):
    """Two packed examples a row and some padding. supervised: share of the tokens that are targets."""
    segments = np.where(np.arange(length) < length // 2, 1, 2) * (np.arange(length) < length - 2)
    segments = np.tile(segments, (rows, 1)).astype(np.int32)
    weight = (RNG.random((rows, length)) < supervised) * RNG.uniform(0.5, 2, (rows, length)) * (segments > 0)
    tokens = RNG.integers(0, VOCAB, (rows, length)).astype(np.int32)
    return Batch(tokens, segments, np.zeros_like(tokens), np.ones_like(tokens), weight.astype(np.float32))


def plain(params, batch):
    """(summed loss, summed weight, hits): token t + 1 is predicted from token t of the same example."""
    logits = (params["table"][batch.tokens] @ params["head"])[:, :-1]
    targets = batch.tokens[:, 1:, None]
    weight = batch.loss_weight[:, 1:] * (batch.segments[:, 1:] == batch.segments[:, :-1])
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=2)[:, :, 0]
    return (loss * weight).sum(), weight.sum(), ((logits.argmax(-1) == targets[:, :, 0]) * weight).sum()


@pytest.mark.parametrize(
    ("length", "supervised"),
    [(9, 0.5), (CHUNK + 1, 1.0), (2 * CHUNK, 0.9), (2 * CHUNK + 5, 0.1)],
)
def test_chunks_give_the_plain_cross_entropy(length, supervised):
    batch = make_batch(length, supervised)
    (value, (weight, hits)), got = jax.jit(jax.value_and_grad(parts, has_aux=True))(PARAMS, batch)
    expected = jax.grad(lambda params: plain(params, batch)[0])(PARAMS)
    np.testing.assert_allclose([value, weight, hits], plain(PARAMS, batch), rtol=1e-5)
    assert 0 < hits < weight
    for name, leaf in expected.items():
        np.testing.assert_allclose(got[name], leaf, rtol=1e-4, atol=1e-4, err_msg=name)


def parts(params, batch):
    sums = next_token(BagOfOne(params), batch)
    (loss, weight), (hits, same) = sums["next_token"], sums["accuracy"]
    return loss, (weight, jnp.where(weight == same, hits, jnp.nan))


@pytest.mark.parametrize("length", [9, 2 * CHUNK])
def test_without_a_target_loss_and_gradient_are_zero(length):
    batch = make_batch(length, supervised=0.0)
    (value, (weight, _)), gradient = jax.jit(jax.value_and_grad(parts, has_aux=True))(PARAMS, batch)
    assert (value, weight) == (0, 0)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)


def test_the_first_token_of_an_example_is_no_target_of_the_one_before():
    batch = make_batch(10, supervised=0.0, rows=1)
    weight = batch.loss_weight.copy()
    weight[0, 5] = 1  # the second example begins here
    assert parts(PARAMS, batch.replace(loss_weight=weight))[1][0] == 0
    weight[0, 6] = 1
    assert parts(PARAMS, batch.replace(loss_weight=weight))[1][0] == 1


def test_logits_of_the_whole_batch_never_exist():
    """No array of the program, forward or backward, is as large as [B, T, vocab]; chunks are."""
    rows, length = 3, 4 * CHUNK
    batch = make_batch(length, supervised=1.0, rows=rows)
    sizes = array_sizes(jax.make_jaxpr(jax.grad(lambda params: parts(params, batch)[0]))(PARAMS))
    assert rows * CHUNK * VOCAB in sizes
    assert max(sizes) < rows * (length - 1) * VOCAB
    whole = array_sizes(jax.make_jaxpr(lambda params: plain(params, batch)[0])(PARAMS))
    assert max(whole) >= rows * (length - 1) * VOCAB  # and this is how one would be found


def array_sizes(jaxpr):
    """Entries of every array that a program computes, inner programs included."""
    sizes = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.update(variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jaxpr.jaxpr)
    return sizes


def test_a_token_beyond_the_table_that_weighs_nothing_is_not_looked_up():
    """As the placeholder of a picture may be, of a tokenizer that is larger than the model's vocabulary."""
    batch = make_batch(CHUNK + 9, 0.5)
    strange = np.where(batch.loss_weight > 0, batch.tokens, VOCAB + 3)

    def loss(params, batch):
        forward = BagOfOne(params)
        forward.params = {**params, "table": jnp.pad(params["table"], ((0, 4), (0, 0)))}
        nll, weight = next_token(forward, batch)["next_token"]
        return nll / weight

    found, grads = jax.value_and_grad(loss)(PARAMS, batch.replace(tokens=strange))
    assert np.isfinite(found) and all(np.isfinite(leaf).all() for leaf in grads.values())
