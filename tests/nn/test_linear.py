import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_batch, random_params, small_model

from mmjax import tree
from mmjax.config import Adapter
from mmjax.nn.linear import Linear, add_lora, matmul, merge_lora

RNG = np.random.default_rng(0)
X, W = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 3, 5), (5, 4)))
QUERIES = [("query/kernel$", Adapter(rank=2, alpha=6))]


def test_matmul_has_the_gradients_of_the_plain_product():
    aim = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    value, got = jax.value_and_grad(lambda x, w: (matmul(x, w) * aim).sum(), (0, 1))(X, W)
    wanted, expected = jax.value_and_grad(lambda x, w: (jnp.einsum("btd,df->btf", x, w) * aim).sum(), (0, 1))(X, W)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = Linear(4, bias, jnp.float32, jnp.float32)
    params = {"kernel": W} | ({"bias": np.arange(4.0)} if bias else {})
    assert set(layer.init(jax.random.key(0), X)["params"]) == set(params)
    expected = X @ W + (np.arange(4) if bias else 0)
    np.testing.assert_allclose(layer.apply({"params": params}, X), expected, rtol=1e-5, atol=1e-5)


def test_adapters_beside_a_kernel_are_used():
    a, b = RNG.normal(size=(5, 2)), RNG.normal(size=(2, 4))
    params = {"kernel": W, "lora_a": a, "lora_b": b, "lora_scale": np.float32(0.5)}
    got = Linear(4, False, jnp.float32, jnp.float32).apply({"params": jax.tree.map(jnp.float32, params)}, X)
    np.testing.assert_allclose(got, X @ W + 0.5 * (X @ a) @ b, rtol=1e-5, atol=1e-5)


def test_new_adapters_leave_every_bit_of_the_function():
    model = small_model("splice")
    params, batch = random_params(model), make_batch("splice", [["look #: a cat"]], length=20)
    adapted = add_lora(params, [("^backbone/layers/", Adapter(rank=2, alpha=4))], jax.random.key(0))
    added = {path: leaf.shape for path, leaf in tree.flatten(adapted).items() if "lora_" in path}
    assert added["backbone/layers/mlp/down/lora_a"] == (2, 64, 2)
    assert added["backbone/layers/mlp/down/lora_b"] == (2, 2, 32)
    assert added["backbone/layers/mlp/down/lora_scale"] == (2,)
    assert len(added) == 3 * 7
    run = jax.jit(lambda params: model.apply(params, batch).hidden)
    np.testing.assert_array_equal(run(adapted), run(params))

    learned = tree.map_paths(lambda path, leaf: leaf + 0.1 if path.endswith("lora_b") else leaf, adapted)
    hidden = run(learned)
    assert np.abs(hidden - run(params)).max() > 1e-2
    merged = merge_lora(learned)
    assert set(tree.flatten(merged)) == set(tree.flatten(params))
    np.testing.assert_allclose(run(merged), hidden, rtol=1e-4, atol=1e-5)


def test_scale_is_alpha_over_rank_and_a_is_uniform_noise():
    params = {"query": {"kernel": np.zeros((3, 100, 7), np.float32)}, "key": {"kernel": np.zeros((3, 5, 7))}}
    adapted = add_lora({"layers": params}, QUERIES, jax.random.key(0))["layers"]
    assert set(adapted["key"]) == {"kernel"}
    np.testing.assert_array_equal(adapted["query"]["lora_scale"], 3.0)
    np.testing.assert_array_equal(adapted["query"]["lora_b"], 0)
    a = np.asarray(adapted["query"]["lora_a"])
    assert 0.09 < np.abs(a).max() <= 0.1  # 1 / sqrt(100)
    assert abs(a.mean()) < 0.01
    assert len(np.unique(a)) == a.size  # each layer has noise of its own


def test_merging_keeps_the_kernels_dtype():
    params = {"query": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}}
    params = add_lora({"layer": params}, QUERIES, jax.random.key(0))
    assert merge_lora(params)["layer"]["query"]["kernel"].dtype == jnp.bfloat16


def test_adapters_of_an_earlier_stage_are_kept():
    params = {"layer": {"query": {"kernel": jnp.ones((4, 4))}, "key": {"kernel": jnp.ones((4, 4))}}}
    first = add_lora(params, QUERIES, jax.random.key(0))
    second = add_lora(first, [("kernel$", Adapter(rank=3, alpha=3))], jax.random.key(1))
    np.testing.assert_array_equal(second["layer"]["query"]["lora_a"], first["layer"]["query"]["lora_a"])
    assert second["layer"]["key"]["lora_a"].shape == (4, 3)


def test_a_rule_that_finds_no_kernel_is_an_error():
    params = {"layer": {"query": {"kernel": np.ones((4, 4)), "bias": np.ones(4)}}}
    with pytest.raises(ValueError, match=r"lora: 'querry' is found in no parameter path.*layer/query/kernel"):
        add_lora(params, [("querry", Adapter(rank=2, alpha=2))], jax.random.key(0))
    with pytest.raises(ValueError, match="'bias"):  # adapters stand beside kernels alone
        add_lora(params, [("bias$", Adapter(rank=2, alpha=2))], jax.random.key(0))
