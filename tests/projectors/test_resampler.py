import jax
import jax.numpy as jnp
import numpy as np
from small import PERCEIVER, randomise

from mmjax.build import build

RNG = np.random.default_rng(0)


def perceiver(features, **changes):
    projector = build(PERCEIVER | changes, "perceiver", width=24, dtype=jnp.float32, param_dtype=jnp.float32)
    return projector, randomise(jax.eval_shape(projector.init, jax.random.key(0), features)["params"])


def run(projector, params, features):
    return np.asarray(jax.jit(projector.apply)({"params": params}, features))


def test_any_number_of_features_becomes_as_many_tokens_as_latents():
    for n in (5, 9):
        features = RNG.normal(size=(2, 3, n, 16)).astype(np.float32)
        assert run(*perceiver(features, latents=7), features).shape == (2, 3, 7, 16)
    assert run(*perceiver(features, latents=7, project=True), features).shape == (2, 3, 7, 24)


def test_each_picture_is_resampled_alone_and_the_order_of_its_features_is_no_matter():
    features = RNG.normal(size=(1, 2, 5, 16)).astype(np.float32)
    projector, params = perceiver(features)
    tokens = run(projector, params, features)
    changed = features.copy()
    changed[0, 1] = features[0, 1, ::-1]
    np.testing.assert_allclose(run(projector, params, changed), tokens, rtol=1e-4, atol=1e-5)
    changed[0, 1] += RNG.normal(size=(5, 16))
    moved = np.abs(run(projector, params, changed) - tokens).max((2, 3))[0]
    assert moved[0] < 1e-5 < 1e-2 < moved[1]


def test_one_layer_is_that_of_the_formula():
    """x += attention(LN x, [LN features; LN x]); x += mlp(LN x); LN x (Flamingo, figure 5), in numpy."""
    features = RNG.normal(size=(1, 1, 5, 16)).astype(np.float32)
    projector, params = perceiver(features, latents=3, activation="relu2")
    p = jax.tree.map(np.asarray, params)

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p[name]["scale"] + p[name]["bias"]

    def heads(name, x):
        return (x @ p["attention_0"][name]["kernel"]).reshape(len(x), 2, 8).swapaxes(0, 1)

    x = p["latents"]
    latents = norm("latent_norm_0", x)
    source = np.concatenate([norm("feature_norm_0", features[0, 0]), latents])
    q, k, v = heads("query", latents), heads("key", source), heads("value", source)
    weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(8))
    y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(3, 16)
    x = x + y @ p["attention_0"]["out"]["kernel"]
    hidden = np.maximum(norm("mlp_norm_0", x) @ p["mlp_0"]["up"]["kernel"], 0) ** 2
    x = x + hidden @ p["mlp_0"]["down"]["kernel"]
    np.testing.assert_allclose(run(projector, params, features)[0, 0], norm("norm_out", x), rtol=1e-4, atol=1e-5)
