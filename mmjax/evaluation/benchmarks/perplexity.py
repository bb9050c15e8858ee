"""Perplexity of plain English: what training on pictures made a language model forget."""

from __future__ import annotations

import math
from pydoc_data.topics import topics  # the language reference that every Python carries
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.inference.chat import Assistant
from mmjax.inference.score import log_likelihood
from mmjax.types import Batch


def evaluate(assistant: Assistant, *, data_dir: str, windows: int, length: int) -> dict[str, Any]:
    """Of the prose of Python's own manual, in windows that begin anew.

    Args:
      windows: how many, spread evenly over the manual. length: tokens of each.

    Returns:
      perplexity: exp of the mean negative log-likelihood of every token but each window's first. tokens: how many.

    Raises:
      UserError: the manual is too short for so many windows.
    """
    del data_dir
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = np.asarray(assistant.encoder.tokenizer.encode(text)[0], np.int32)
    if len(ids) < windows * length:
        raise UserError(f"windows: {windows} of {length} tokens are more than the text's {len(ids)}.")
    starts = np.arange(windows) * ((len(ids) - length) // max(1, windows - 1))
    rows, total = ids[starts[:, None] + np.arange(length)], 0.0
    at_once = assistant.fitting(length, 0, logits=2 * length)  # logits, and their log-softmax
    for begin in range(0, windows, at_once):
        tokens = rows[begin : begin + at_once]
        ones = np.ones_like(tokens)
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        batch = Batch(tokens, ones, positions, ones, ones.astype(np.float32))
        total += float(log_likelihood(assistant.model, assistant.params, batch).sum())
    count = windows * (length - 1)
    return {"perplexity": math.exp(-total / count), "tokens": count}
