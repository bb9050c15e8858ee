import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.norm import Norm

X = np.random.default_rng(0).normal(loc=3, size=(2, 5, 8)).astype(np.float32)
SCALE, BIAS = np.linspace(-1, 2, 8), np.linspace(0, 1, 8)


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


EXPECTED = {
    "layer": rms(X - X.mean(-1, keepdims=True)) * SCALE + BIAS,
    "layer_nobias": rms(X - X.mean(-1, keepdims=True)) * SCALE,
    "rms": rms(X) * SCALE,
    "rms1": rms(X) * (1 + SCALE),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_it_is_the_formula(kind):
    params = {"scale": jnp.asarray(SCALE)} | ({"bias": jnp.asarray(BIAS)} if kind == "layer" else {})
    got = Norm(kind, 1e-6, jnp.float32).apply({"params": params}, X)
    np.testing.assert_allclose(got, EXPECTED[kind], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_new_norm_does_nothing_but_normalise(kind):
    got, _ = Norm(kind, 1e-6, jnp.float32).init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(np.square(got).mean(-1), 1, rtol=1e-4)


def test_bfloat16_is_normed_in_float32():
    x = jnp.asarray(X * 1e4, jnp.bfloat16)
    got = Norm("layer", 1e-6, jnp.bfloat16).init_with_output(jax.random.key(0), x)[0]
    assert got.dtype == jnp.bfloat16
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), rms(x - x.mean(-1, keepdims=True)), atol=0.01)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'batch' is none of 'layer', 'layer_nobias'"):
        Norm("batch", 1e-6, jnp.float32).init(jax.random.key(0), X)
