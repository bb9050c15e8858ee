"""Attention against the plain formula in numpy, and its gradients against those of the formula in jax.numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.attention import attend

RNG = np.random.default_rng(0)


def inputs(heads, kv_heads, t=5, s=7, d=4):
    shapes = (2, t, heads, d), (2, s, kv_heads, d), (2, s, kv_heads, d)
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def plain(q, k, v, mask, softcap, xp=np):
    """softmax over visible keys, each query head with the key-value head of its group; zeros where none is."""
    group = q.shape[2] // k.shape[2]
    k, v = (xp.repeat(x, group, axis=2) for x in (k, v))
    logits = xp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    logits = softcap * xp.tanh(logits / softcap) if softcap else logits
    weights = xp.where(mask[:, None], xp.exp(logits), 0)
    weights = weights / xp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return xp.einsum("bhts,bshd->bthd", weights, v)


MASKS = {
    "all": np.ones((2, 5, 7), bool),
    "causal": np.broadcast_to(np.tril(np.ones((5, 7), bool), 2), (2, 5, 7)),
    "with rows that see nothing": RNG.random((2, 5, 7)) < np.array([0.6, 0, 0.6, 0, 0.2])[:, None],
}
SHAPES = [(4, 4, 0.0), (4, 2, 0.0), (4, 1, 0.0), (6, 2, 2.0)]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_one_mask_for_all_queries(heads, kv_heads):
    q, k, v = inputs(heads, kv_heads)
    mask = MASKS["causal"][:, :1]
    np.testing.assert_array_equal(attend(q, k, v, mask), attend(q, k, v, np.repeat(mask, q.shape[1], axis=1)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads", "softcap"), SHAPES)
def test_it_is_the_formula(heads, kv_heads, softcap, mask):
    q, k, v = inputs(heads, kv_heads)
    got = attend(q, k, v, MASKS[mask], softcap)
    np.testing.assert_allclose(got, plain(q, k, v, MASKS[mask], softcap), rtol=1e-4, atol=1e-5)
    if mask == "with rows that see nothing":
        np.testing.assert_array_equal(got[:, 1], 0)
    if mask == "all":
        np.testing.assert_allclose(attend(q, k, v, None, softcap), got, rtol=1e-5, atol=1e-6)


def test_scale_and_bias_are_those_of_the_formula():
    q, k, v = inputs(6, 3)
    bias = RNG.normal(size=(2, 6, 5, 7)).astype(np.float32)
    k_all, v_all = (np.repeat(x, 2, axis=2) for x in (k, v))
    logits = 0.3 * np.einsum("bthd,bshd->bhts", q, k_all) + bias
    weights = np.where(MASKS["causal"][:, None], np.exp(logits), 0)
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v_all)
    got = attend(q, k, v, MASKS["causal"], scale=0.3, bias=bias)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_its_gradients_are_those_of_the_formula(mask):
    q, k, v = inputs(4, 2)
    aim = RNG.normal(size=q.shape).astype(np.float32)

    def gradients(function):
        return jax.grad(lambda q, k, v: (function(q, k, v) * aim).sum(), (0, 1, 2))(q, k, v)

    got = gradients(lambda q, k, v: attend(q, k, v, MASKS[mask], 3.0))
    expected = gradients(lambda q, k, v: plain(q, k, v, MASKS[mask], 3.0, jnp))
    for name, a, b in zip("qkv", got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_large_logits_do_not_overflow():
    q, k, v = inputs(2, 2)
    got = np.asarray(attend(1000 * q, 1000 * k, v, MASKS["causal"]))
    logits = np.where(MASKS["causal"][:, None], np.einsum("bthd,bshd->bhts", q, k), -np.inf)
    nearest = np.take_along_axis(v.transpose(0, 2, 1, 3), logits.argmax(-1)[..., None], axis=2).swapaxes(1, 2)
    np.testing.assert_allclose(got, nearest, rtol=1e-5)


def test_bfloat16_stays_bfloat16_and_sums_in_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(2, 2, t=3, s=512))
    got = attend(q, k, v, None)
    assert got.dtype == jnp.bfloat16
    exact = plain(*(np.asarray(x, np.float64) for x in (q, k, v)), np.ones((2, 3, 512), bool), 0.0)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=0.01)
