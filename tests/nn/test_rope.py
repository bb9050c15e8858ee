import numpy as np
import pytest

from mmjax.nn.rope import alibi_slopes, rope_frequencies, rotate

X = np.random.default_rng(0).normal(size=(1, 6, 2, 8)).astype(np.float32)
POSITIONS = np.array([[0, 1, 2, 3, 5, 100]])


def test_rotation_is_that_of_the_formula():
    """Pair (i, i + 4) of 8 dimensions turns by position * theta ** (-i / 4), as complex numbers."""
    pairs = X[..., :4] + 1j * X[..., 4:]
    angle = POSITIONS[:, :, None, None] * 10_000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(
        rotate(X, POSITIONS, rope_frequencies(8, 10_000.0, 1.0)), expected, rtol=1e-4, atol=1e-5
    )


def test_a_fraction_leaves_the_rest_alone():
    half = rotate(X, POSITIONS, rope_frequencies(8, 100.0, 0.5))
    np.testing.assert_array_equal(half[..., 4:], X[..., 4:])
    np.testing.assert_array_equal(half[..., :4], rotate(X[..., :4], POSITIONS, rope_frequencies(4, 100.0, 1.0)))


def test_phi_rotates_32_of_80_dimensions():
    x = np.ones((1, 1, 1, 80), np.float32)
    turned = np.asarray(rotate(x, np.array([[7]]), rope_frequencies(80, 10_000.0, 0.4)))[0, 0, 0]
    assert (turned[:16] != 1).all()
    assert (turned[32:] == 1).all()


@pytest.mark.parametrize("shift", [1, 50])
def test_products_depend_on_distance_alone(shift):
    def products(positions):
        turned = np.asarray(rotate(X, positions, rope_frequencies(8, 10_000.0, 1.0)))
        return np.einsum("bthd,bshd->bhts", turned, turned)

    moved = products(POSITIONS + shift)
    np.testing.assert_allclose(moved, products(POSITIONS), rtol=1e-3, atol=1e-3)
    assert np.abs(moved - np.einsum("bthd,bshd->bhts", X, X)).max() > 0.5


def test_linear_scaling_is_a_slower_walk():
    slow = rope_frequencies(8, 10_000.0, 1.0, dict(type="linear", factor=4.0))
    turned = rotate(X, 4 * POSITIONS, slow)
    np.testing.assert_allclose(turned, rotate(X, POSITIONS, rope_frequencies(8, 10_000.0, 1.0)), atol=1e-4)


def test_alibi_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    exponents = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]  # of 12 heads: 8's own, then every second of 16's
    np.testing.assert_allclose(alibi_slopes(12), 2.0 ** -np.array(exponents), rtol=1e-6)
