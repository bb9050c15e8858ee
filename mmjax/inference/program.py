"""What the programs for prompts share: rows padded, positions checked, a cache's rows repeated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.model import MultimodalLM
from mmjax.types import Batch, Cache


def pad_tokens(batch: Batch, length: int) -> Batch:
    """The batch with its rows padded on the right, [B, T] -> [B, length]; no computation if T is `length`.

    Raises:
      UserError: T is larger than `length`.
    """
    extra = length - batch.tokens.shape[1]
    if extra == 0:
        return batch
    if extra < 0:
        raise UserError(f"prompts of {batch.tokens.shape[1]} tokens do not fit into {length}.")

    def pad(x, value):
        # A host's batch stays on the host: padding on the device would compile once for every length.
        module = np if isinstance(x, np.ndarray) else jnp
        widths = ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2))
        return module.pad(x, widths, constant_values=value)

    return Batch(
        tokens=pad(batch.tokens, 0),
        segments=pad(batch.segments, 0),
        positions=pad(batch.positions, 0),
        causal=pad(batch.causal, 1),
        loss_weight=pad(batch.loss_weight, 0),
        media={
            name: m.replace(slot=pad(m.slot, -1), visible=pad(m.visible, -1)) for name, m in batch.media.items()
        },
    )


def check_positions(model: MultimodalLM, batch: Batch, more: int) -> None:
    """Raises UserError if prompts, and `more` tokens read after each, need more than the learned positions."""
    limit = model.backbone.max_positions
    if limit and (needed := int(np.max(batch.positions)) + 1 + more) > limit:
        raise UserError(
            f"{needed - more} tokens of a prompt and {more} read after them need {needed} positions; "
            f"model.backbone.max_positions is {limit}."
        )


def last_hidden(hidden: jax.Array, segments: jax.Array) -> jax.Array:
    """hidden [B, T, D] of rows padded on the right -> [B, D], each row's at its last token."""
    last = jnp.maximum((segments > 0).sum(1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Each row of the cache `times` times, one after the other."""

    def rows(x, axis):
        return jnp.repeat(x, times, axis=axis)

    cross = {
        name: jax.tree.map(lambda x, axis=(1 if name == "media_kv" else 0): rows(x, axis), value)
        for name, value in cache.cross.items()
    }
    return cache.replace(
        keys=rows(cache.keys, 1),
        values=rows(cache.values, 1),
        segments=rows(cache.segments, 0),
        steps=rows(cache.steps, 0),
        positions=rows(cache.positions, 0),
        cross=cross,
    )
