"""What answering takes is known before it is taken: fewer prompts at once, or a refusal with the key to turn."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_assistant import MANY
from tiny import tiny_assistant

from mmjax.data.encoded import Encoded
from mmjax.data.image import ImageOptions
from mmjax.data.patches import Native
from mmjax.errors import UserError
from mmjax.evaluation.benchmarks import perplexity
from mmjax.inference import memory
from mmjax.inference.settings import Sampling
from mmjax.types import Sample, Turn

# Qwen2-VL-7B: sizes of its decoder and its encoder.
BACKBONE = dict(depth=28, heads=28, kv_heads=4, head_dim=128, vocab=152_064, dtype=jnp.bfloat16)
QWEN = types.SimpleNamespace(
    backbone=types.SimpleNamespace(**BACKBONE),
    encoders=dict(image=types.SimpleNamespace(heads=16, merge=2, patch=14)),
)


def prompt_of(tokens):
    """A prompt with one picture of so many tokens, and three of text."""
    slot = np.r_[-1, np.arange(tokens), -1, -1]
    ones = np.ones_like(slot)
    return Encoded(ones, ones, ones, slot, ones, np.arange(len(slot)), np.array([[0, tokens + 2, 1]]))


def test_a_large_model_by_numbers():
    # 2 * 28 layers * 4 heads * 128 * 2 bytes a cell; 28 heads * 1024 * 1152 scores; logits.
    assert memory.text_bytes(QWEN, 1024, 128) == 57_344 * 1152 + 4 * 28 * 1024 * 1152 + 4 * 152_064
    assert memory.text_bytes(QWEN, 1024, 128, copies=4) - memory.text_bytes(QWEN, 1024, 128) == 3 * 57_344 * 1152
    assert memory.patches_of(QWEN, prompt_of(16_384)) == [65_536]
    assert memory.picture_bytes(QWEN, [65_536]) == 4 * 16 * 65_536**2
    assert memory.picture_bytes(QWEN, [64, 256, 64]) == 4 * 16 * 3 * 256**2


def test_a_photo_too_large_for_a_machine_is_refused_with_the_key():
    views = Native(ImageOptions(14, "stretch", 10**8), 65_536, 2, 3136, 12_845_056)
    photo = Sample("q1", (Turn("user", "<image>What?"),), (np.zeros((3584, 3584, 3), np.uint8),))
    left = 64 * 10**9
    with pytest.raises(UserError) as error:
        memory.check_memory(QWEN, views, photo, prompt_of(16_384), 128, left)
    message = str(error.value)
    assert message.startswith("q1, picture 1: of 3584 x 3584 pixels takes 65,536 patches, and attention among ")
    assert "about 274.9 GB; 64.0 GB are left" in message and "data.media.views.max_pixels" in message
    pixels = int(message.split("conversion) to ")[1].rstrip(".").replace(",", ""))
    assert pixels == 24_576 * 14**2  # of more, a batch would have 32,768
    memory.check_memory(QWEN, views, photo, prompt_of(pixels // 28**2), 128, left)
    with pytest.raises(UserError, match="takes 32,768 patches"):
        memory.check_memory(QWEN, views, photo, prompt_of(pixels // 28**2 + 1), 128, left)


def test_a_text_too_long_for_a_machine_is_refused():
    blind = types.SimpleNamespace(backbone=QWEN.backbone, encoders={})
    with pytest.raises(UserError, match=r"q2: 16,387 tokens and 128 of the answer take about .* Shorten it"):
        memory.check_memory(blind, None, Sample("q2", ()), prompt_of(16_384), 128, 5 * 10**9)


@pytest.mark.parametrize(
    ("most", "row", "left", "rows"),
    [(64, 10, 1280, 64), (64, 10, 1279, 32), (64, 10, 200, 8), (64, 10, 0, 1), (6, 10, 100, 4), (1, 10, 0, 1)],
)
def test_rows_are_the_largest_power_of_two_within_half(most, row, left, rows):
    assert memory.rows_that_fit(most, row, left) == rows


def test_what_is_left_is_beside_the_parameters():
    small, large = dict(x=jnp.zeros(4)), dict(x=jnp.zeros(1024))
    assert memory.memory_left(small) - memory.memory_left(large) == 4 * 1020
    assert memory.memory_left(small) > 10**8


@pytest.mark.slow
def test_with_less_memory_fewer_prompts_are_answered_at_once_and_alike(monkeypatch):
    assistant, seen = tiny_assistant(batch=4, max_new=4), []
    expected, scores = assistant.generate(MANY), assistant.score_many(MANY, [["Red", "A dot."]] * len(MANY))
    encoded = [assistant._encode(one, 4) for one in MANY]
    need = memory.text_bytes(assistant.model, 64, 4) + memory.picture_bytes(assistant.model, [16, 16])
    assert memory.patches_of(assistant.model, encoded[3]) == [16, 16]  # 16 pixels in patches of 4
    groups = assistant._groups
    monkeypatch.setattr(assistant, "_groups", lambda *given: seen.append(given[2]) or groups(*given))
    assistant.memory = 2 * 2 * need
    assert assistant.generate(MANY) == expected
    assistant.generate(MANY, Sampling(max_new=4, beams=8))
    for ours, theirs in zip(assistant.score_many(MANY, [["Red", "A dot."]] * len(MANY)), scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert seen == [2, 1, 1]
    assistant.memory = 1000
    with pytest.raises(UserError, match=r"1, picture 1: of 16 x 16 pixels takes 16 patches, .* Show fewer"):
        assistant.generate(MANY)


def test_perplexity_is_the_same_in_smaller_batches(monkeypatch):
    monkeypatch.setattr(perplexity, "topics", {"import": "The import statement finds a module. " * 9})
    assistant = tiny_assistant()
    whole = perplexity.evaluate(assistant, data_dir="", windows=4, length=16)
    assistant.memory = 2 * memory.text_bytes(assistant.model, 16, 0, logits=32)
    assert assistant.fitting(16, 0, logits=32) == 1
    assert perplexity.evaluate(assistant, data_dir="", windows=4, length=16)["perplexity"] == pytest.approx(
        whole["perplexity"], rel=1e-5
    )


def test_keys_and_values_are_counted_as_the_model_makes_them():
    model = tiny_assistant().model
    cache = jax.eval_shape(lambda: model.cache(3, 50))
    made = sum(x.size * x.dtype.itemsize for x in (cache.keys, cache.values))
    b = model.backbone
    assert memory.text_bytes(model, 20, 30, copies=3) == made + 4 * b.heads * 20 * 50 + 4 * b.vocab
