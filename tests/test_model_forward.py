"""What the composition computes, for both ways of letting pictures in. The models are random; gates are open."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import FUSIONS, SPAN, make_batch, random_params, small_model

from mmjax import tree
from mmjax.nn.block import Block, BlockShape, fields_of
from mmjax.nn.masks import attention_mask, steps
from mmjax.nn.norm import Norm
from mmjax.nn.xattn import GatedCrossBlock

CLOSE = dict(rtol=1e-4, atol=1e-5)


def compiled(model, method="apply"):
    """(params, *args) -> logits, and a cache where the method returns one."""

    def run(params, *args):
        result = getattr(model, method)(params, *args)
        hidden, *cache = (result.hidden,) if method == "apply" else result
        return model.logits(params, hidden), *cache

    return jax.jit(run)


@pytest.fixture(scope="module", params=FUSIONS)
def built(request):
    """fusion, model, parameters, and the compiled function (params, batch) -> logits."""
    model = small_model(request.param)
    logits = compiled(model)
    return request.param, model, random_params(model), lambda params, batch: np.asarray(logits(params, batch)[0])


def size_of(batch):
    """Tokens of each row."""
    return (batch.segments > 0).sum(1)


def change(batch, **image):
    """The batch with other fields of its pictures."""
    return batch.replace(media={"image": batch.media["image"].replace(**image)})


def test_packed_examples_have_the_logits_they_have_alone(built):
    fusion, _, params, logits = built
    examples = ["look #: a cat", "no picture", "#dog # or hen"]
    packed = logits(params, make_batch(fusion, [examples], length=48, slots=3))[0]
    alone = make_batch(fusion, [[example] for example in examples], length=48, slots=3)
    begin = 0
    for row, size in zip(logits(params, alone), size_of(alone), strict=True):
        np.testing.assert_allclose(packed[begin : begin + size], row[:size], **CLOSE)
        begin += size


def test_decoding_with_a_cache_is_the_full_forward_pass(built):
    """Prompts of different lengths are read at once, then every row goes on, one token at a time."""
    fusion, model, params, logits = built
    prompts, rest, length = ["a #: b", "## two pictures", "no picture", "#"], "more", 32
    prompted = make_batch(fusion, [[p] for p in prompts], length - len(rest))
    expected = logits(params, make_batch(fusion, [[p + rest] for p in prompts], length))

    first, cache = compiled(model, "prefill")(params, prompted, model.cache(len(prompts), cells=length))
    decode, later = compiled(model, "decode"), []
    for letter in rest:
        one, cache = decode(params, np.full((len(prompts), 1), ord(letter), np.int32), cache)
        later.append(one)
    for row, size in enumerate(size_of(prompted)):
        got = np.concatenate([first[row, :size], *(one[row] for one in later)])
        np.testing.assert_allclose(got, expected[row, : size + len(rest)], **CLOSE)


def test_what_lies_in_an_empty_slot_changes_nothing(built):
    fusion, _, params, logits = built
    batch = make_batch(fusion, [["look #: a cat"], ["no picture"]], length=24)
    noise = np.random.default_rng(0).integers(0, 256, batch.media["image"].values.shape, np.uint8)
    empty = ~batch.media["image"].valid[:, :, None, None, None]
    assert empty.any()
    changed = change(batch, values=np.where(empty, noise, batch.media["image"].values))
    np.testing.assert_array_equal(logits(params, changed), logits(params, batch))


def test_a_picture_changes_what_comes_after_it_alone(built):
    fusion, _, params, logits = built
    batch = make_batch(fusion, [["look #: a cat", "another"]], length=32)
    changed = change(batch, values=255 - batch.media["image"].values)
    moved = np.abs(logits(params, batch) - logits(params, changed)).max(-1)[0]
    begin, end = len("look "), len("look : a cat") + (SPAN if fusion == "splice" else 1)
    assert moved[begin:end].min() > 1e-3
    np.testing.assert_array_equal(moved[:begin], 0)
    np.testing.assert_array_equal(moved[end:], 0)


def test_an_invalid_picture_is_not_attended_to():
    model = small_model("xattn")
    params, logits = random_params(model), compiled(model)
    batch = make_batch("xattn", [["look #: a cat"]], length=16)
    unseen = change(batch, visible=np.full_like(batch.media["image"].visible, -1))
    invalid = change(batch, valid=np.zeros_like(batch.media["image"].valid))
    (seen,), (unseen,), (invalid,) = (logits(params, b) for b in (batch, unseen, invalid))
    np.testing.assert_array_equal(invalid, unseen)
    assert np.abs(seen - unseen).max() > 1e-3


def test_a_batch_without_media_is_refused_by_cross_attention():
    model = small_model("xattn")
    batch = make_batch("xattn", [["look"]], length=8).replace(media={})
    with pytest.raises(ValueError, match=r"data.media.slots is 1 at least"):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0)), batch)


def test_a_bidirectional_picture_is_seen_whole_by_its_first_token():

    model = small_model("splice")
    params, logits = random_params(model), compiled(model)
    causal, block = (make_batch("splice", [["ab#cd"]], 10, bidirectional=b) for b in (False, True))
    moved = np.abs(logits(params, causal)[0] - logits(params, block)[0]).max(-1)[0]
    np.testing.assert_array_equal(moved[:2], 0)
    assert moved[2 : 2 + SPAN - 1].min() > 1e-3


def text_logits(model, params, batch):
    """Logits of the backbone alone, for the text of a batch."""

    @jax.jit
    def run(params):
        step = steps(batch.causal)
        mask = attention_mask(step, batch.segments, step, batch.segments)
        x = model.backbone.apply({"params": params}, batch.tokens, method="embed")
        hidden, _, _ = model.backbone.apply({"params": params}, x, positions=batch.positions, mask=mask)
        return model.backbone.apply({"params": params}, hidden, method="logits")

    return run({name: leaf for name, leaf in params["backbone"].items() if name != "xattn"})


def test_text_alone_is_the_language_model_alone():
    model = small_model("splice")
    params = random_params(model)
    batch = make_batch("splice", [["no picture", "here"], ["nor there"]], length=24)
    logits, expected = compiled(model)(params, batch)[0], text_logits(model, params, batch)
    np.testing.assert_array_equal(logits, expected)
    without = compiled(model)(params, batch.replace(media={}))[0]
    np.testing.assert_array_equal(without, expected)


def test_fresh_gates_leave_every_bit_of_the_language_model():
    model, alone = small_model("xattn", depth=4), small_model("splice", depth=4)
    params = random_params(model)
    batch = make_batch("xattn", [["look #: a cat", "no picture"], ["# a dog"]], length=32)
    expected = text_logits(alone, params, batch)
    assert np.abs(compiled(model)(params, batch)[0] - expected).max() > 1e-3  # the gates are open

    close = lambda path, leaf: jnp.zeros_like(leaf) if path.endswith("gate") else leaf  # noqa: E731
    np.testing.assert_array_equal(compiled(model)(tree.map_paths(close, params), batch)[0], expected)


@pytest.mark.parametrize(
    ("depth", "every", "first", "order", "scan"),
    [
        (5, 2, 1, "L XLL XLL", True),
        (5, 2, 0, "XLL XLL XL", True),
        (5, 2, 0, "XLL XLL XL", False),
        (4, 3, 2, "LL XLL", True),
        (3, 4, 2, "LL XL", True),
        (3, 4, 2, "LL XL", False),
    ],
)
def test_cross_attention_stands_before_every_kth_layer(depth, every, first, order, scan):
    """Against a plain loop over X, the gated cross-attention blocks, and L, the layers of the language model."""
    xattn = dict(every=every, first=first, activation="gelu", gated=False, norm="layer")
    backbone = small_model("xattn", scan=scan, depth=depth, xattn=xattn).backbone
    params = random_params(small_model("xattn", depth=depth, xattn=xattn))["backbone"]
    rng = np.random.default_rng(0)
    x, media = (rng.normal(size=(1, *shape)).astype(np.float32) for shape in ((6, 32), (SPAN, 16)))
    positions, see_all = np.arange(6)[None], np.ones((1, 6, SPAN), bool)
    causal = np.tril(np.ones((1, 6, 6), bool))

    @jax.jit
    def whole(params):
        inputs = dict(positions=positions, mask=causal, media=media, media_mask=see_all)
        return backbone.apply({"params": params}, x, **inputs)[0]

    layer = Block(**fields_of(backbone, Block))
    differs = dict(
        kv_heads=backbone.heads, activation="gelu", gated=False, norm="layer", rope_theta=0.0, gate="scalar"
    )
    cross = GatedCrossBlock(**fields_of(backbone, BlockShape) | differs)
    norm = Norm(backbone.norm, backbone.norm_eps, jnp.float32)

    @jax.jit
    def loop(params):
        y, layers, blocks = x, slices(params["layers"]), slices(params["xattn"])
        for kind in order.replace(" ", ""):
            if kind == "X":
                y, _ = cross.apply({"params": next(blocks)}, y, media, mask=see_all)
            else:
                y, _ = layer.apply({"params": next(layers)}, y, mask=causal, positions=positions)
        assert next(layers, None) is next(blocks, None) is None
        return norm.apply({"params": params["norm_out"]}, y)

    np.testing.assert_allclose(whole(params), loop(params), **CLOSE)


def slices(stacked):
    """The parameters of each layer of a stack, in order."""
    for i in range(len(jax.tree.leaves(stacked)[0])):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], stacked)


def test_a_projector_learns_through_the_tokens_that_stand_in_the_text():
    """The gradient of one token's logits: none before the picture, nor where no token of it is in the text."""
    model = small_model("splice")
    params = random_params(model)
    batch = make_batch("splice", [["look #: a cat", "and more"]], length=32)
    begin, end = len("look "), len("look : a cat") + SPAN

    @jax.jit
    def gradient_norms(projectors, batch):
        def at(projectors, t):
            logits = model.logits(params, model.apply(params | dict(projectors=projectors), batch).hidden)
            return jnp.square(logits[0, t]).sum()

        return jax.lax.map(
            lambda t: optax.tree.norm(jax.grad(at)(projectors, t)), jnp.arange(batch.tokens.shape[1])
        )

    norms = gradient_norms(params["projectors"], batch)
    np.testing.assert_array_equal(norms[:begin], 0)
    assert norms[begin:end].min() > 0
    np.testing.assert_array_equal(norms[end:], 0)
    unspliced = change(batch, slot=np.full_like(batch.media["image"].slot, -1))
    np.testing.assert_array_equal(gradient_norms(params["projectors"], unspliced), 0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tokens_per_medium(fusion):
    assert small_model(fusion).tokens_per_medium() == {"image": SPAN}
