import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import randomise

from mmjax.build import build
from mmjax.encoders.native import places

SPEC = dict(
    type="encoders.native.NativeViT",
    variant="qwen2_5_vl",
    patches=32,
    patch=2,
    width=16,
    depth=1,
    heads=2,
    kv_heads=2,
    head_dim=8,
    mlp_width=32,
    window=4,
)
GRIDS = np.array([[[4, 6], [2, 2], [0, 0]]])  # the third slot is empty
PATCHES = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 12), np.uint8)


def native(**changes):
    return build(SPEC | changes, "native", dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)


def features_of(**changes):
    """A function of patches and grid, with the same parameters at each call."""
    encoder = native(**changes)
    params = randomise(jax.eval_shape(encoder.init, jax.random.key(0), dict(patches=PATCHES, grid=GRIDS)), 0)
    apply = jax.jit(encoder.apply)
    return lambda patches=PATCHES, grid=GRIDS: np.asarray(apply(params, dict(patches=patches, grid=grid)))


def test_patches_stand_in_their_blocks():
    place, real = places(jnp.array([[4, 6], [0, 0]]), 26, 2)
    assert place[0, :8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert place[0, 12].tolist() == [2, 0] and place[0, 23].tolist() == [3, 5]
    assert real.sum(1).tolist() == [24, 0]


def test_what_stands_behind_a_picture_is_not_seen():
    other = PATCHES.copy()
    other[0, 0, 24:], other[0, 1, 4:] = 0, 255
    features = features_of()
    found, expected = features(other), features()
    assert found.shape == (1, 3, 32, 16) and np.isfinite(found).all()
    np.testing.assert_array_equal(found[0, 0, :24], expected[0, 0, :24])
    np.testing.assert_array_equal(found[0, 1, :4], expected[0, 1, :4])


@pytest.mark.parametrize("full", [(), (0,)])
def test_attention_stays_within_windows_but_in_full_layers(full):
    """Of 4 x 6 patches, columns 4 and 5 (patches 8-11 and 20-23) are a window of their own."""
    features = features_of(full=full)
    base = features()[0, 0, :24]
    other = PATCHES.copy()
    other[0, 0, 9] = 255 - other[0, 0, 9]
    moved = np.abs(features(other)[0, 0, :24] - base).max(-1) > 1e-6
    assert np.flatnonzero(moved).tolist() == (list(range(24)) if full else [8, 9, 10, 11, 20, 21, 22, 23])


def test_the_grid_tells_where_patches_are():
    """The same patches as 4 x 6 and as 6 x 4 are other pictures."""
    features = features_of(window=0)
    moved = np.abs(features(grid=GRIDS[:, :, ::-1]) - features())
    assert moved[0, 0, :24].max() > 1e-3
    assert moved[0, 1, :4].max() == 0
