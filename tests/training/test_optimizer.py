import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.training.optimizer import make_optimizer
from mmjax.tree import flatten

SPEC = dict(
    type="adamw", lr=0.1, schedule="cosine", warmup=4, final=0.1, b1=0.9, b2=0.99, eps=1e-6,
    weight_decay=0.05, clip=1.0, lr_factors=[("^lora/", 2.0), (".*", 1.0)], decay=[("bias$", False), (".*", True)],
)  # fmt: skip
PARAMS = {
    "projector": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, -0.3])},
    "lora": {"a": jnp.array([0.7, 0.2, -0.9])},
}


def gradients(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), PARAMS)


def test_three_updates_are_those_of_the_formula():
    """The formula in float64 NumPy, written out again: clip, moments, bias correction, decoupled decay."""
    spec = SPEC | {"warmup": 0, "schedule": "linear", "final": 0.0, "clip": 0.8}
    optimizer, _ = make_optimizer(spec, 10, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)

    expected = {path: np.asarray(p, np.float64) for path, p in flatten(PARAMS).items()}
    m = dict.fromkeys(expected, 0.0)
    v = dict.fromkeys(expected, 0.0)
    for t in (1, 2, 3):
        updates, state = optimizer.update(gradients(t), state, params)
        params = optax.apply_updates(params, updates)

        grads = {path: np.asarray(g, np.float64) for path, g in flatten(gradients(t)).items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        assert norm > 0.8  # or the clip would go untested
        for path, g in grads.items():
            g = g * 0.8 / norm
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.99 * v[path] + 0.01 * g**2
            direction = m[path] / (1 - 0.9**t) / (np.sqrt(v[path] / (1 - 0.99**t)) + 1e-6)
            decay = 0.0 if path == "projector/bias" else 0.05
            rate = 0.1 * (1 - (t - 1) / 10) * (2.0 if path == "lora/a" else 1.0)
            expected[path] = expected[path] - rate * (direction + decay * expected[path])
        for path, p in flatten(params).items():
            # A few float32 roundings of values near 1: some parameters pass close by zero.
            np.testing.assert_allclose(p, expected[path], rtol=2e-6, atol=5e-7, err_msg=f"{path} after {t}")


def test_without_clip_a_gradient_of_any_size_passes():
    updates = {}
    for clip in (0, 1e6):
        optimizer, _ = make_optimizer(SPEC | {"clip": clip, "warmup": 0, "eps": 1.0}, 10, PARAMS)
        updates[clip], _ = optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, updates[0], updates[1e6])


def test_bfloat16_parameters_stay_bfloat16():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer, _ = make_optimizer(SPEC, 10, params)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_state_is_made_for_abstract_parameters_too():
    abstract = jax.eval_shape(lambda: PARAMS)
    optimizer, _ = make_optimizer(SPEC, 10, abstract)
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, abstract)) if leaf.shape]
    assert sorted(shapes) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(PARAMS)])


@pytest.mark.parametrize(
    ("schedule", "warmup", "final", "expected"),
    [
        ("cosine", 4, 0.1, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 8: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 12: 0.55,
                            20: 0.1, 30: 0.1}),
        ("cosine", 0, 0.0, {0: 1, 10: 0.5, 20: 0}),
        ("linear", 4, 0.0, {0: 0, 2: 0.5, 4: 1, 12: 0.5, 19: 1 / 16, 20: 0}),
        ("linear", 0.25, 0.2, {0: 0, 1: 0.2, 5: 1, 20: 0.2}),
        ("linear", 0.03, 0.0, {0: 0, 1: 1, 20: 0}),  # 0.6 of an update counts as one
        ("constant", 2, 1, {0: 0, 1: 0.5, 2: 1, 19: 1}),
    ],
)  # fmt: skip
def test_the_schedule_at_exact_steps(schedule, warmup, final, expected):
    spec = SPEC | {"schedule": schedule, "warmup": warmup, "final": final}
    _, rate = make_optimizer(spec, 20, PARAMS)
    for step, fraction in expected.items():
        np.testing.assert_allclose(rate(step), 0.1 * fraction, rtol=1e-6, atol=1e-9, err_msg=f"at step {step}")


def test_the_optimizer_follows_the_schedule():
    optimizer, rate = make_optimizer(SPEC | {"weight_decay": 0.0, "eps": 1e-12}, 20, PARAMS)
    state = optimizer.init(PARAMS)
    for step in range(6):  # a gradient that never changes has an Adam direction of 1
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
        np.testing.assert_allclose(updates["projector"]["bias"], -rate(step), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(updates["lora"]["a"], -2 * rate(step), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decai": 0.1}, "no key 'weight_decai'; did you mean 'weight_decay'"),
        ({"type": "adam"}, "optimizer.type: no 'adam'; did you mean 'adamw'"),
        ({"schedule": "cosin"}, "optimizer.schedule: no 'cosin'; did you mean 'cosine'"),
        ({"schedule": "constant"}, "optimizer.final: 0.1; a constant schedule ends at its peak"),
        ({"warmup": 20}, "optimizer.warmup: 20 is neither .* below the stage's 20"),
        ({"warmup": 1.5}, "optimizer.warmup: 1.5 is neither"),
        ({"lr": -1.0}, "optimizer.lr: -1.0 is below 0"),
        ({"lr_factors": [("^lora/", 2.0)]}, "(?s)optimizer.lr_factors: no rule covers 2 .*projector/bias"),
        ({"decay": []}, "optimizer.decay: no rule covers 3"),
    ],
)
def test_a_wrong_spec_is_a_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(SPEC | change, 20, PARAMS)


@pytest.mark.parametrize("key", SPEC)
def test_no_key_has_a_default(key):
    with pytest.raises(ValueError, match=f"optimizer: requires {key}"):
        make_optimizer({k: v for k, v in SPEC.items() if k != key}, 20, PARAMS)
