"""InfoNCE of pictures and texts: against `transformers`' CLIP, with equal texts, and with empty slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_batch as small_batch
from small import random_params, small_model

from mmjax.objectives.contrastive import image_text
from mmjax.objectives.forward import Forward
from mmjax.types import Batch, Media

WIDTH, SPAN = 6, 2
RNG = np.random.default_rng(0)


class Encoded:
    """The least of a model: pictures are their tokens, a text token its row of a table."""

    def __init__(self, table):
        self.table = table

    def encode(self, batch):
        return {"image": batch.media["image"].values}

    def embed(self, tokens):
        return self.table[tokens]


def make_batch(texts, valid):
    """Rows of pictures with a text of two supervised tokens each. texts: [B, M, 2]; valid: bool [B, M]."""
    texts, valid = np.asarray(texts), np.asarray(valid)
    b, m, _ = texts.shape
    # One token before each text sees the picture as well, and is no target.
    tokens = np.concatenate([np.zeros((b, m, 1), int), texts], axis=2).reshape(b, 3 * m)
    visible = np.tile(np.repeat(np.arange(m), 3), (b, 1))
    weight = np.tile([0.0, 1.0, 1.0], (b, m))
    media = Media(
        RNG.normal(size=(b, m, SPAN, WIDTH)).astype(np.float32), valid, np.full_like(visible, -1), visible
    )
    ones = np.ones_like(tokens)
    return Batch(tokens, ones, ones, ones, weight.astype(np.float32), {"image": media})


TABLE = jnp.asarray(RNG.normal(size=(20, WIDTH)), jnp.float32)


def test_it_is_clips_loss():
    torch = pytest.importorskip("torch")
    clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    batch = make_batch(RNG.permutation(19)[:12].reshape(2, 3, 2) + 1, np.ones((2, 3), bool))
    pictures = batch.media["image"].values.mean(2).reshape(6, WIDTH)
    texts = np.asarray(TABLE)[batch.tokens.reshape(6, 3)[:, 1:]].mean(1)
    unit = [torch.tensor(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (texts, pictures)]
    expected = clip.image_text_contrastive_loss(unit[0] @ unit[1].T / 0.1).item()
    (total, count), (hits, _) = image_text(Encoded(TABLE), batch, 0.1).values()
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)
    assert count == 6 and hits == (unit[1] @ unit[0].T).argmax(1).eq(torch.arange(6)).sum().item()


def test_empty_slots_and_pictures_without_text_do_not_count():
    whole = make_batch(np.arange(1, 13).reshape(2, 3, 2), np.ones((2, 3), bool))
    valid, weight = np.ones((2, 3), bool), whole.loss_weight.copy()
    valid[0, 2] = False
    weight[1, 6:] = 0  # the last picture's text is not supervised
    media = {"image": whole.media["image"].replace(valid=valid)}
    found = image_text(Encoded(TABLE), whole.replace(loss_weight=weight, media=media), 0.1)

    cut = {"image": jax.tree.map(lambda x: x[:, :2] if x.shape[1] == 3 else x[:, :6], whole.media["image"])}
    short = Batch(*(x[:, :6] for x in (whole.tokens, *[whole.segments] * 3, whole.loss_weight)), cut)
    expected = image_text(Encoded(TABLE), short, 0.1)
    assert found["image_text"][1] == expected["image_text"][1] == 4
    np.testing.assert_allclose(found["image_text"][0], expected["image_text"][0], rtol=1e-6)


def test_texts_that_are_the_same_are_all_right():
    batch = make_batch([[[1, 2], [2, 1], [3, 4]]], [[True] * 3])  # a bag of tokens: 1 2 is 2 1

    def loss(values):
        media = {"image": batch.media["image"].replace(values=values)}
        return image_text(Encoded(TABLE), batch.replace(media=media), 0.1)["image_text"][0]

    values = batch.media["image"].values
    first, second = jax.grad(loss)(values), jax.grad(loss)(values[:, [1, 0, 2]])
    np.testing.assert_allclose(first, second[:, [1, 0, 2]], atol=1e-5)
    # Both pictures at their common text, the third at its own: the loss is the entropy of two, one way.
    texts = TABLE[jnp.array([[1, 2], [1, 2], [3, 4]])].mean(1)
    values = jnp.repeat(texts[None, :, None], SPAN, axis=2)
    exact = batch.replace(media={"image": batch.media["image"].replace(values=values)})
    total, count = image_text(Encoded(TABLE), exact, 0.01)["image_text"]
    np.testing.assert_allclose(total / count, 2 * np.log(2) / 3, rtol=1e-3)


def test_the_language_model_does_not_run():
    model = small_model("splice")
    params = random_params(model)
    params["backbone"]["layers"] = jax.tree.map(lambda x: x * jnp.nan, params["backbone"]["layers"])
    batch = small_batch("splice", [["#cat", "#dog"], ["#owl", "text"]], length=16)
    total, count = image_text(Forward(model, params), batch, 0.1)["image_text"]
    assert count == 3 and jnp.isfinite(total)
