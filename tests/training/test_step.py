"""One training step: what it trains, what it leaves alone, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import BACKBONE, ENCODER, FUSIONS, MLP, make_batch, random_params, small_model

from mmjax import tree
from mmjax.model import make_model
from mmjax.training.optimizer import make_optimizer
from mmjax.training.state import make_state
from mmjax.training.step import make_step

NEXT_TOKEN = dict(next_token=dict(type="objectives.language.next_token", weight=1.0))
ADAMW = dict(
    # eps: Adam's first update is g / (|g| + eps), which would make much of the rounding of tiny gradients.
    type="adamw", lr=1e-2, schedule="constant", warmup=0, final=1, b1=0.9, b2=0.98, eps=1e-3,
    weight_decay=0.1, clip=1.0, lr_factors=[(".*", 1.0)], decay=[(r"kernel$", True), (".*", False)],
)  # fmt: skip
ROWS = [["look #: a cat", "no picture"], ["#dog or hen", "more"], ["only text"], ["two # and # of them"]]


def start(model, params, trainable, accumulate=1, ema=0.0):
    """A state, and the compiled step, which leaves the state that it is given as it is."""
    chosen, _ = tree.partition(params, tree.select(trainable, params, "trainable"))
    optimizer, _ = make_optimizer(ADAMW, 1000, chosen)
    state = make_state(params, trainable, optimizer, jax.random.key(0), frozen_dtype=jnp.float32, ema=ema > 0)
    return state, jax.jit(make_step(model, NEXT_TOKEN, optimizer, accumulate=accumulate, ema=ema))


@functools.cache
def trained(fusion):
    """A batch, the states before and after each of three steps on it with a frozen encoder, the last metrics, and
    the step."""
    model, batch = small_model(fusion), make_batch(fusion, ROWS, length=40)
    state, step = start(model, random_params(model), ["^projectors/", "^backbone/"], ema=0.75)
    states = [state]
    for _ in range(3):
        state, metrics = step(state, batch)
        states.append(state)
    return batch, states, metrics, step


@pytest.mark.parametrize("fusion", FUSIONS)
def test_frozen_parameters_keep_every_bit_while_the_trained_move(fusion):
    _, (before, *_, after), metrics, _ = trained(fusion)
    assert metrics["skipped"] == 0
    frozen, moving = tree.flatten(before.frozen), tree.flatten(before.params)
    assert {path.split("/")[0] for path in frozen} == {"encoders"}
    assert {path.split("/")[0] for path in moving} == {"projectors", "backbone"}
    for path, leaf in tree.flatten(after.all_params()).items():
        if path in frozen:
            np.testing.assert_array_equal(leaf, frozen[path], err_msg=path)
        else:
            assert (np.asarray(leaf) != moving[path]).any(), path


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_batch_is_learned_by_heart(fusion):
    batch, (state, *_), _, step = trained(fusion)
    losses = []
    while len(losses) < 200 and min(losses, default=np.inf) >= 0.05:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 2
    assert losses[-1] < 0.05, losses[::10]


def test_ema_is_the_running_mean():
    _, states, _, _ = trained("splice")
    expected = tree.flatten(states[0].params)
    for state in states[1:]:
        params = tree.flatten(state.params)
        expected = {path: 0.75 * mean + 0.25 * params[path] for path, mean in expected.items()}
    for path, leaf in tree.flatten(states[-1].ema).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-7, err_msg=path)


def poison_weight(state, batch):
    return state, batch.replace(loss_weight=np.where(batch.tokens == ord("c"), np.nan, batch.loss_weight))


def poison_frozen_parameter(state, batch):
    spoil = lambda path, leaf: leaf * np.nan if path.endswith("embedding") else leaf  # noqa: E731
    return state.replace(frozen=tree.map_paths(spoil, state.frozen)), batch


def poison_trained_parameter(state, batch):
    return state.replace(params=jax.tree.map(lambda leaf: leaf.at[..., 0].set(np.inf), state.params)), batch


@pytest.mark.parametrize("poison", [poison_weight, poison_frozen_parameter, poison_trained_parameter])
def test_a_step_that_is_not_finite_is_skipped_and_counted(poison):
    batch, (*_, before), metrics, step = trained("splice")
    assert np.isfinite(metrics["loss"])
    before, spoilt = poison(before, batch)
    after, metrics = step(before, spoilt)
    assert not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert (metrics["skipped"], after.skipped, after.step) == (1, 1, before.step + 1)
    for part in ("params", "optimizer", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))


def test_after_a_skipped_step_training_goes_on():
    batch, (*_, last), _, step = trained("splice")
    skipped, _ = step(*poison_weight(last, batch))
    after, metrics = step(skipped, batch)
    expected, _ = step(last, batch)
    assert (metrics["skipped"], after.step) == (1, expected.step + 1)
    jax.tree.map(np.testing.assert_array_equal, after.params, expected.params)


def test_a_batch_taken_in_parts_gives_the_same_step():
    """Rows differ in their number of targets, so the mean of the parts' means would be another loss."""
    batch, (before, whole, *_), _, step = trained("splice")
    assert len(set(batch.loss_weight.sum(1))) == len(ROWS)
    _, whole_metrics = step(before, batch)
    model = small_model("splice")
    state, step = start(model, random_params(model), ["^projectors/", "^backbone/"], accumulate=4, ema=0.75)
    parts, parts_metrics = step(state, batch)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)
    for path, leaf in tree.flatten(whole.params).items():
        np.testing.assert_allclose(tree.flatten(parts.params)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def wide_model():
    """A model whose matrices, not its attention or its head, are what costs. Unrolled: of a loop, XLA counts one
    turn."""
    wide = dict(width=128, mlp_width=512, heads=2, kv_heads=2, head_dim=64)
    spec = dict(
        encoders=dict(image=ENCODER | wide),
        projectors=dict(image=MLP | dict(reduce="none")),
        backbone=BACKBONE | wide | dict(depth=3, vocab=8),
        fusion="splice",
    )
    return make_model(spec, dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=False)


def test_frozen_parts_cost_no_weight_gradients():
    """FLOPs of the compiled step. A matrix of N entries costs 2 N a token forward, 2 N for the gradient of its
    input, and 2 N for its own: a frozen part before all trained ones costs 2 N, one after them 4 N, a trained one
    6 N."""
    rows, length, patches = 16, 16, 16
    model = wide_model()
    params = random_params(model)
    batch = make_batch("splice", [[]] * rows, length, slots=1)
    tokens = dict(encoders=rows * patches, projectors=rows * patches, backbone=rows * length)
    unit = dict.fromkeys(tokens, 0)  # N times tokens, of each part
    for path, leaf in tree.flatten(params).items():
        if path.endswith("kernel"):
            part = path.split("/")[0]
            unit[part] += leaf.size * tokens[part]

    def check(trainable, encoders, projectors, backbone):
        state, step = start(model, params, trainable)
        flops = step.lower(state, batch).compile().cost_analysis()["flops"]
        expected = encoders * unit["encoders"] + projectors * unit["projectors"] + backbone * unit["backbone"]
        np.testing.assert_allclose(flops, expected, rtol=0.08, err_msg=str(trainable))
        return flops

    alignment = check(["^projectors/"], 2, 6, 4)
    tuning = check(["^projectors/", "^backbone/"], 2, 6, 6)
    check(["."], 6, 6, 6)
    np.testing.assert_allclose((tuning - alignment) / unit["backbone"], 2, rtol=0.1)
