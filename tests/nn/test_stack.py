"""Scanned or unrolled, kept or computed again: the same values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_batch, random_params, small_model

from mmjax import tree
from mmjax.nn.stack import run

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)


def loop(weights, **options):
    body = lambda x, w: (jnp.tanh(x @ w), x.sum())  # noqa: E731
    return run(body, jnp.ones(3), weights, **options)


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("scan", [True, False])
def test_run_is_a_loop(remat, scan):
    x, sums = np.ones(3), []
    for w in WEIGHTS:
        sums.append(x.sum())
        x = np.tanh(x @ w)
    last, ys = loop(WEIGHTS, remat=remat, scan=scan)
    np.testing.assert_allclose(last, x, rtol=1e-5)
    np.testing.assert_allclose(ys, sums, rtol=1e-5)


def test_scan_is_a_loop_and_remat_computes_again():
    def primitives(**options):
        return str(jax.make_jaxpr(jax.grad(lambda w: loop(w, **options)[0].sum()))(WEIGHTS))

    assert "length=4" in primitives(remat=False, scan=True)
    compiled = jax.jit(lambda w: loop(w, remat=False, scan=False)[0]).lower(WEIGHTS).compile().as_text()
    assert "while" not in compiled
    assert "remat" in primitives(remat=True, scan=True)
    assert "remat" not in primitives(remat=False, scan=True)


def test_a_model_has_the_same_values_and_gradients():
    """One with a layer of its own, and then a group of a cross-attention block and a layer."""
    xattn = dict(every=1, first=1, activation="gelu", gated=False, norm="layer")
    batch = make_batch("xattn", [["look #: a cat"]], length=20)
    params = random_params(small_model("xattn", xattn=xattn))

    def value_and_gradient(remat, scan):
        model = small_model("xattn", remat=remat, scan=scan, xattn=xattn)
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(model.apply(p, batch).hidden).mean()))(params)

    (value, gradient), (other_value, other) = value_and_gradient(False, True), value_and_gradient(True, False)
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    other = tree.flatten(other)
    for path, leaf in tree.flatten(gradient).items():
        assert np.abs(leaf).max() > 0 or "head" in path, path
        np.testing.assert_allclose(other[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
