import numpy as np
import pytest

from mmjax.nn.rope import rotate

X = np.random.default_rng(0).normal(size=(1, 6, 2, 8)).astype(np.float32)
POSITIONS = np.array([[0, 1, 2, 3, 5, 100]])


def test_rotation_is_that_of_the_formula():
    """Pair (i, i + 4) of 8 dimensions turns by position * theta ** (-i / 4), as complex numbers."""
    pairs = X[..., :4] + 1j * X[..., 4:]
    angle = POSITIONS[:, :, None, None] * 10_000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(X, POSITIONS, 10_000.0, 1.0), expected, rtol=1e-4, atol=1e-5)


def test_a_fraction_leaves_the_rest_alone():
    half = rotate(X, POSITIONS, 100.0, 0.5)
    np.testing.assert_array_equal(half[..., 4:], X[..., 4:])
    np.testing.assert_array_equal(half[..., :4], rotate(X[..., :4], POSITIONS, 100.0, 1.0))


def test_phi_rotates_32_of_80_dimensions():
    x = np.ones((1, 1, 1, 80), np.float32)
    turned = np.asarray(rotate(x, np.array([[7]]), 10_000.0, 0.4))[0, 0, 0]
    assert (turned[:16] != 1).all()
    assert (turned[32:] == 1).all()


@pytest.mark.parametrize("shift", [1, 50])
def test_products_depend_on_distance_alone(shift):
    def products(positions):
        turned = np.asarray(rotate(X, positions, 10_000.0, 1.0))
        return np.einsum("bthd,bshd->bhts", turned, turned)

    moved = products(POSITIONS + shift)
    np.testing.assert_allclose(moved, products(POSITIONS), rtol=1e-3, atol=1e-3)
    assert np.abs(moved - np.einsum("bthd,bshd->bhts", X, X)).max() > 0.5


GRID = np.stack([POSITIONS, POSITIONS[:, ::-1], 2 * POSITIONS], axis=-1)


def test_sections_turn_by_their_own_component():
    """M-RoPE: pair 0 of 4 by the first component, pair 1 by the second, pairs 2 and 3 by the third."""
    found = np.asarray(rotate(X, GRID, 10_000.0, 1.0, sections=(1, 1, 2)))
    for component, pairs in enumerate(([0, 4], [1, 5], [2, 3, 6, 7])):
        alone = np.asarray(rotate(X, GRID[:, :, component], 10_000.0, 1.0))
        np.testing.assert_allclose(found[..., pairs], alone[..., pairs], rtol=1e-5, atol=1e-6)


def test_equal_components_are_a_plain_position():
    equal = np.repeat(POSITIONS[:, :, None], 3, axis=-1)
    plain = rotate(X, POSITIONS, 10_000.0, 1.0)
    np.testing.assert_array_equal(rotate(X, equal, 10_000.0, 1.0, sections=(1, 1, 2)), plain)
    np.testing.assert_array_equal(rotate(X, POSITIONS, 10_000.0, 1.0, sections=(1, 1, 2)), plain)


def test_axial_components_have_all_wavelengths_each():
    """Pairs (0, 4), (1, 5) turn by the row, as pairs (0, 2), (1, 3) of a head of 4; the others by the column."""
    found = np.asarray(rotate(X, GRID[..., :2], 10_000.0, 1.0, axial=True))
    for component, dims in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
        alone = rotate(X[..., dims], GRID[:, :, component], 10_000.0, 1.0)
        np.testing.assert_allclose(found[..., dims], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sections", [(), (2, 2), (1, 1, 1)])
def test_sections_that_do_not_fit_are_refused(sections):
    with pytest.raises(ValueError, match="rope_sections"):
        rotate(X, GRID, 10_000.0, 1.0, sections=sections)
