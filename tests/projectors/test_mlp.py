import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from small import MLP, randomise

from mmjax.build import build
from mmjax.projectors.mlp import concat, pixel_shuffle

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 16, 6)).astype(np.float32)


def run(features=FEATURES, **changes):
    projector = build(MLP | changes, "mlp", width=8, dtype=jnp.float32, param_dtype=jnp.float32)
    params = randomise(jax.eval_shape(projector.init, jax.random.key(0), features)["params"])
    return params, np.asarray(projector.apply({"params": params}, features))


def test_mlp2x_gelu_is_linear_gelu_linear():
    """LLaVA-1.5's projector, with torch's exact GELU."""
    params, got = run(reduce="none", norm="")
    x = FEATURES @ params["linear_0"]["kernel"] + params["linear_0"]["bias"]
    x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
    x = x @ params["linear_1"]["kernel"] + params["linear_1"]["bias"]
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reduce", "tokens"), [("none", 16), ("pixel_shuffle", 4), ("concat", 8)])
def test_reducers_shorten(reduce, tokens):
    params, got = run(reduce=reduce)
    assert got.shape == (2, 3, tokens, 8)
    assert params["linear_0"]["kernel"].shape == (6 * 16 // tokens, 8)


def test_pixel_shuffle_joins_each_square():
    grid = np.arange(16).reshape(1, 16, 1)  # of 4 x 4 tokens
    assert pixel_shuffle(grid, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_concat_joins_neighbours():
    assert concat(np.arange(6).reshape(1, 6, 1), 3)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("reducer", "tokens"), [(pixel_shuffle, 15), (pixel_shuffle, 9), (concat, 15)])
def test_tokens_that_cannot_be_grouped_are_refused(reducer, tokens):
    with pytest.raises(ValueError, match=f"{tokens} tokens"):
        reducer(np.zeros((1, tokens, 2)), 2)


def test_an_unknown_reducer_is_refused():
    with pytest.raises(ValueError, match=r"mlp\.reduce: no 'shuffle'; did you mean 'pixel_shuffle'"):
        run(reduce="shuffle")
