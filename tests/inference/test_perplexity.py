"""Perplexity against the log-probabilities of a plain forward pass."""

import numpy as np
import pytest
from tiny import forward_log_probs, tiny_assistant

from mmjax.evaluation.benchmarks import perplexity
from mmjax.types import Batch

TEXT = "The import statement finds a module, then binds its name. " * 4


def test_perplexity_is_that_of_the_logits(monkeypatch):
    monkeypatch.setattr(perplexity, "topics", {"import": TEXT})
    assistant = tiny_assistant()
    found = perplexity.evaluate(assistant, data_dir="", windows=2, length=16)
    ids = np.asarray(assistant.encoder.tokenizer.encode(TEXT)[0], np.int32)
    rows = np.stack([ids[:16], ids[-16:]])
    ones = np.ones_like(rows)
    batch = Batch(rows, ones, np.arange(16, dtype=np.int32) + 0 * rows, ones, ones.astype(np.float32))
    log_probs = forward_log_probs(assistant.model, assistant.params, batch)
    likelihood = np.take_along_axis(log_probs[:, :-1], rows[:, 1:, None], axis=-1)
    assert found["tokens"] == 30
    assert found["perplexity"] == pytest.approx(np.exp(-likelihood.mean()), rel=1e-4)
    with pytest.raises(ValueError, match="are more than the text's"):
        perplexity.evaluate(assistant, data_dir="", windows=100, length=16)
