"""What an objective sees of a model: a forward pass that is run once and remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mmjax.model import MultimodalLM
from mmjax.types import Batch, Output


class Forward:
    """`forward(batch)` is the model's Output, computed once for all the losses that ask for it."""

    def __init__(self, model: MultimodalLM, params: Mapping[str, Any]):
        self._model, self._params = model, params
        self._outputs: dict[int, tuple[Batch, Output]] = {}  # by id, each with the batch that has this id

    def __call__(self, batch: Batch) -> Output:
        if id(batch) not in self._outputs:
            self._outputs[id(batch)] = batch, self._model.apply(self._params, batch)
        return self._outputs[id(batch)][1]

    def encode(self, batch: Batch) -> dict[str, jax.Array]:
        """Each modality's projected tokens [B, M, K, D]; the language model does not run."""
        return self._model.encode(self._params, batch.media)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """tokens int32 [...] -> the language model's embeddings of them, [..., D]."""
        return self._model.embed(self._params, tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> float32 [..., vocab]; ask for a few positions at a time."""
        return self._model.logits(self._params, hidden)
