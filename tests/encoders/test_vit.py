import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ENCODER, randomise

from mmjax import tree
from mmjax.build import build
from mmjax.encoders.vit import sincos_2d

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)  # B = 2 rows of M = 3 pictures
PATCHES = 16


def vit(**changes):
    spec = {**ENCODER, "depth": 3, **changes}
    return build(spec, "vit", dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)


def params_of(encoder, seed=0):
    return randomise(jax.eval_shape(encoder.init, jax.random.key(0), PIXELS)["params"], seed)


def features(encoder, params, pixels=PIXELS):
    return np.asarray(jax.jit(encoder.apply)({"params": params}, pixels))


def test_the_layer_before_the_last_is_a_shallower_model_without_its_final_norm():
    """LLaVA's features: layer -2, no final norm, and the class token dropped."""
    deep = vit(variant="clip", layer=-2)
    params = params_of(deep)
    assert jax.tree.leaves(params["layers"])[0].shape[0] == 3  # all layers are kept, for checkpoints of others
    shallow = vit(variant="clip", depth=2, layer=-1, final_norm=False)
    fewer = {name: leaf for name, leaf in params.items() if name != "norm_out"}
    fewer["layers"] = jax.tree.map(lambda leaf: leaf[:2], params["layers"])
    got = features(deep, params)
    assert got.shape == (2, 3, PATCHES, 16)
    np.testing.assert_allclose(got, features(shallow, fewer), rtol=1e-5, atol=1e-6)


def test_layers_are_counted_as_hidden_states():
    """0 enters the first layer, and the layers from the end agree with those from the start."""
    deep = vit(variant="clip", pool="all")
    params = params_of(deep)
    found = [features(vit(variant="clip", pool="all", layer=k), params) for k in range(-4, 4)]
    for k in range(4):
        np.testing.assert_array_equal(found[k], found[k + 4])
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # each layer adds nothing
    np.testing.assert_array_equal(features(vit(variant="clip", pool="all", layer=2), params), found[0])


def test_layer_scale_weighs_what_a_layer_adds():
    scaled = vit(variant="clip", layer_scale=0.5, final_norm=False)
    params = params_of(scaled)
    ones = jnp.ones((3, 16))
    params["layers"] |= dict(attention_layer_scale=ones, mlp_layer_scale=ones)
    whole = features(scaled, params)
    without = {k: leaf for k, leaf in params["layers"].items() if "scale" not in k}
    plain = vit(variant="clip", final_norm=False)
    np.testing.assert_allclose(whole, features(plain, params | {"layers": without}), rtol=1e-5)
    params["layers"] |= dict(attention_layer_scale=0 * ones, mlp_layer_scale=0 * ones)
    np.testing.assert_array_equal(
        features(scaled, params), features(vit(variant="clip", layer=0, final_norm=False), params)
    )


def test_registers_are_looked_at_and_dropped():
    encoder = vit(variant="dinov2_reg")
    params = params_of(encoder)
    assert params["registers"].shape == (1, 4, 16)
    assert params["position_embedding"].shape == (1 + PATCHES, 16)  # registers have none
    without = features(encoder, params)
    assert without.shape == (2, 3, PATCHES, 16)
    assert features(vit(variant="dinov2_reg", pool="all"), params).shape == (2, 3, 1 + 4 + PATCHES, 16)
    assert np.abs(features(encoder, params | {"registers": -params["registers"]}) - without).max() > 1e-3


def test_the_last_layer_is_normed():
    encoder = vit(variant="siglip")
    params = params_of(encoder)
    params["norm_out"] = {"scale": jnp.full(16, 2.0), "bias": jnp.full(16, 3.0)}
    got = features(encoder, params)
    np.testing.assert_allclose(got.mean(-1), 3, atol=1e-4)
    np.testing.assert_allclose(got.std(-1), 2, atol=1e-3)


def test_a_norm_for_the_pooled_feature_leaves_the_others_alone():
    plain, normed, pooled = (
        vit(variant="clip", depth=1, pool="all", final_norm=f) for f in (False, True, "pooled")
    )
    params = params_of(pooled)
    bare = {name: leaf for name, leaf in params.items() if name != "norm_out"}
    np.testing.assert_array_equal(features(pooled, params), features(plain, bare))
    only = vit(variant="clip", depth=1, pool="cls", final_norm="pooled")
    np.testing.assert_array_equal(features(only, params), features(normed, params)[:, :, :1])


def test_the_class_token_is_dropped_and_yet_looked_at():
    encoder = vit(variant="clip")
    params = params_of(encoder)
    without = features(encoder, params)
    assert without.shape == (2, 3, PATCHES, 16)
    changed = features(encoder, params | {"class_token": -params["class_token"]})
    assert np.abs(changed - without).max() > 1e-3


@pytest.mark.parametrize("pool", ["none", "cls", "mean", "map"])
def test_pools(pool):
    encoder = vit(variant="clip", pool=pool, depth=1)
    params = params_of(encoder)
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # tokens do not see each other
    got = features(encoder, params)
    assert got.shape == (2, 3, PATCHES if pool == "none" else 1, 16)
    depends_on_the_picture = np.ptp(got, axis=(0, 1)).max() > 1e-2
    assert depends_on_the_picture == (pool != "cls")


def test_the_mean_pool_is_the_mean_of_the_patches():
    encoder = vit(variant="clip", pool="none", depth=1)
    params = params_of(encoder)
    pooled = features(vit(variant="clip", pool="mean", depth=1), params)[:, :, 0]
    np.testing.assert_allclose(pooled, features(encoder, params).mean(2), rtol=1e-5, atol=1e-6)


def test_a_class_token_that_is_not_there_cannot_be_pooled():
    with pytest.raises(ValueError, match="'cls' with a class token"):
        jax.eval_shape(vit(variant="siglip", pool="cls").init, jax.random.key(0), PIXELS)


def test_a_patch_becomes_one_token_in_raster_order():
    """The stem alone: blocks of zeros add nothing, and the positions are taken away again."""
    encoder = vit(variant="siglip", depth=1, final_norm=False, position="sincos2d", mean=(0,) * 3, std=(1,) * 3)
    params = params_of(encoder)
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])
    got = features(encoder, params) - sincos_2d(4, 4, 16)
    kernel, bias = (np.asarray(params["stem"]["embed"][name]) for name in ("kernel", "bias"))
    patch = PIXELS[1, 2, 4:8, 8:12].astype(np.float32) / 255  # row 1, column 2 of the grid of patches
    np.testing.assert_allclose(got[1, 2, 1 * 4 + 2], patch.reshape(-1) @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_sincos_positions_are_those_of_the_formula():
    table = sincos_2d(2, 3, 8)  # 2 rows, 3 columns; wavelengths 1 and 10,000
    y, x = 1, 2
    expected = [np.sin(x), np.sin(x * 1e-4), np.cos(x), np.cos(x * 1e-4)]
    expected += [np.sin(y), np.sin(y * 1e-4), np.cos(y), np.cos(y * 1e-4)]
    np.testing.assert_allclose(table[y * 3 + x], expected, rtol=1e-6)
    assert len(np.unique(table.round(6), axis=0)) == 6


def test_the_conv_stem_halves_until_the_patch_size():
    encoder = vit(stem="conv", depth=1)
    params = params_of(encoder)
    kernels = {name: leaf["kernel"].shape for name, leaf in params["stem"].items() if "kernel" in leaf}
    assert kernels == {"conv_0": (3, 3, 3, 4), "conv_1": (3, 3, 4, 8), "embed": (8, 16)}
    assert features(encoder, params).shape == (2, 3, PATCHES, 16)
    with pytest.raises(ValueError, match="no power of two"):
        jax.eval_shape(vit(stem="conv", patch=5, size=15).init, jax.random.key(0), PIXELS[..., :15, :15, :])


def test_pixels_are_normalised_by_mean_and_std():
    """A picture of the mean colour is a picture of zeros, whatever the standard deviation."""
    encoder = vit(depth=1, mean=(51 / 255,) * 3, std=(0.5,) * 3)
    params = params_of(encoder)
    grey = np.full_like(PIXELS, 51)
    params["stem"]["embed"]["bias"] = jnp.zeros(16)
    other = params | {"stem": {"embed": params["stem"]["embed"] | {"kernel": jnp.zeros((48, 16))}}}
    np.testing.assert_allclose(features(encoder, params, grey), features(encoder, other, grey), atol=1e-5)
    assert np.abs(features(encoder, params) - features(encoder, other)).max() > 1e-2


@pytest.mark.parametrize(
    ("variant", "pool", "count"),
    [
        ("clip-L/14", "none", 303_179_776),
        ("clip-L/14-336", "none", 303_507_456),
        ("siglip-so400m/14-384", "map", 428_225_600),
        ("eva-g/14", "none", 985_952_256),
        ("dinov2-L/14", "none", 304_367_616),
        ("dinov2-g/14", "none", 1_136_479_232),
    ],
)
def test_published_sizes(variant, pool, count):
    """Parameters of the vision towers as Hugging Face counts them."""
    spec = dict(type="encoders.vit.ViT", variant=variant, pool=pool, layer=-1)
    encoder = build(spec, "vit", dtype=jnp.bfloat16, param_dtype=jnp.float32, remat=False, scan=True)
    pixels = jnp.zeros((1, 1, *encoder.medium_shape()), jnp.uint8)
    assert tree.count(jax.eval_shape(encoder.init, jax.random.key(0), pixels)["params"]) == count
