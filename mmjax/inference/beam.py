"""Beam search as one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmjax.data.buckets import bucket
from mmjax.errors import UserError
from mmjax.inference.program import check_positions, last_hidden, pad_tokens, repeat_rows
from mmjax.model import MultimodalLM
from mmjax.types import Batch, Cache


@struct.dataclass
class Hypotheses:
    """The K best ended continuations of each row, best first: tokens int32 [B, K, max_new], lengths int32 [B, K],
    scores float32 [B, K]; -inf where there are fewer."""

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


@struct.dataclass
class _State:
    """tokens int32 [B, K, max_new] and log-probabilities float32 [B, K] of the beams that go on; what ended."""

    step: jax.Array
    tokens: jax.Array
    log_prob: jax.Array
    ended: Hypotheses
    cache: Cache


def beam(
    model: MultimodalLM,
    params: Mapping[str, Any],
    batch: Batch,
    *,
    beams: int,
    max_new: int,
    stop: Sequence[int],
    pad: int,
    length_penalty: float,
) -> Hypotheses:
    """The likeliest continuations of each prompt that a search with `beams` hypotheses a row finds.

    A continuation's score is log p / length ** length_penalty, its stop token counted in both. A hypothesis ends
    when its stop token is among the best `beams` candidates of its row (as in Hugging Face's beam search), or
    after max_new tokens. A row's search is over when nothing that goes on can still enter its `beams` best.
    One beam without a length penalty is greedy decoding.

    Args:
      batch: prompts, as for `sample.generate`.
      beams: K. max_new: most tokens of a continuation. With them the program is compiled anew.
      stop: token ids that end a continuation; they are not part of what is returned.
      pad: token id written after the end.
      length_penalty: 0 compares log-probabilities, 1 their means; above 0 favours longer continuations.

    Raises:
      UserError: beams or max_new below 1, a length_penalty that is not finite, or more tokens than learned
        positions.
    """
    if beams < 1 or max_new < 1:
        raise UserError(f"beams {beams} and max_new {max_new} must be at least 1.")
    if not np.isfinite(length_penalty):
        raise UserError(f"length_penalty {length_penalty} must be a finite number.")
    check_positions(model, batch, max_new - 1)
    batch = pad_tokens(batch, bucket(batch.tokens.shape[1]))
    stop, pad = np.asarray(stop, np.int32), np.asarray(pad, np.int32)
    return _search(model, params, batch, stop, pad, np.float32(length_penalty), beams, max_new)


@functools.partial(jax.jit, static_argnames=("model", "beams", "max_new"))
def _search(model, params, batch, stop, pad, length_penalty, beams, max_new) -> Hypotheses:
    rows, prompt = batch.tokens.shape

    def scale(length):
        return jnp.asarray(length, jnp.float32) ** length_penalty

    def grow(logits, state):
        return _grow(logits.reshape(rows, beams, -1), state, stop, scale(state.step + 1), prompt)

    def promising(state):
        # What goes on only loses probability; its best possible score is at one end of the lengths ahead.
        likeliest = state.log_prob.max(1)
        best = jnp.maximum(likeliest / scale(state.step + 1), likeliest / scale(max_new))
        return (state.step < max_new) & (best > state.ended.scores.min(1)).any()

    def advance(state):
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2).reshape(-1, 1)
        hidden, cache = model.decode(params, newest, state.cache)
        return grow(model.logits(params, hidden[:, 0]), state.replace(cache=cache))

    hidden, cache = model.prefill(params, batch, model.cache(rows, prompt + max_new - 1))
    logits = model.logits(params, last_hidden(hidden, batch.segments))
    # All beams of a row start alike, so only the first may count; in a row without a prompt, none.
    starts = (batch.segments > 0).any(1)[:, None] & (jnp.arange(beams) == 0)
    tokens = jnp.full((rows, beams, max_new), pad)
    nothing = Hypotheses(tokens, jnp.zeros((rows, beams), jnp.int32), jnp.full((rows, beams), -jnp.inf))
    state = _State(
        step=jnp.zeros((), jnp.int32),
        tokens=tokens,
        log_prob=jnp.where(starts, 0.0, -jnp.inf),
        ended=nothing,
        cache=repeat_rows(cache, beams),
    )
    state = jax.lax.while_loop(promising, advance, grow(jnp.repeat(logits, beams, axis=0), state))
    # Where the search was over before max_new, these score too low to enter.
    return _merge(state.ended, state.tokens, state.step, state.log_prob / scale(max_new))


def _grow(logits: jax.Array, state: _State, stop: jax.Array, scale: jax.Array, prompt: int) -> _State:
    """One token more: hypotheses that end here go to `ended`, the best of the others go on.

    logits: float32 [B, K, V]. scale: what a log-probability of this length is divided by. prompt: cells of the
    cache that the beams of a row have in common.
    """
    rows, beams, vocab = logits.shape
    candidates = jax.nn.log_softmax(logits, axis=-1) + state.log_prob[:, :, None]
    good = candidates >= jax.lax.top_k(candidates.reshape(rows, -1), beams)[0][:, -1, None, None]
    stops = jnp.isin(jnp.arange(vocab), stop)
    # A beam ends once a step, by its likeliest stop token: by another it would be the same answer twice.
    ending = jnp.where(stops & good, candidates, -jnp.inf).max(-1)
    ended = _merge(state.ended, state.tokens, state.step, ending / scale)

    going_on = jnp.where(stops, -jnp.inf, candidates).reshape(rows, -1)
    log_prob, chosen = jax.lax.top_k(going_on, beams)
    parent, token = chosen // vocab, chosen % vocab
    tokens = jnp.take_along_axis(state.tokens, parent[:, :, None], axis=1)
    sources = (jnp.arange(rows)[:, None] * beams + parent).reshape(-1)
    return state.replace(
        step=state.step + 1,
        tokens=tokens.at[:, :, state.step].set(token),
        log_prob=log_prob,
        ended=ended,
        cache=_follow(state.cache, sources, prompt),
    )


def _merge(ended: Hypotheses, tokens: jax.Array, length: jax.Array, scores: jax.Array) -> Hypotheses:
    """The best K of those that ended and of K more, all of `length` tokens; on a tie the earlier ones."""
    every = jnp.concatenate([ended.scores, scores], axis=1)
    scores, best = jax.lax.top_k(every, scores.shape[1])
    lengths = jnp.concatenate([ended.lengths, jnp.full_like(ended.lengths, length)], axis=1)
    tokens = jnp.concatenate([ended.tokens, tokens], axis=1)
    return Hypotheses(
        tokens=jnp.take_along_axis(tokens, best[:, :, None], axis=1),
        lengths=jnp.take_along_axis(lengths, best, axis=1),
        scores=scores,
    )


def _follow(cache: Cache, sources: jax.Array, prompt: int) -> Cache:
    """Row i continues row sources[i]. The prompt's cells, media and whereabouts are the same in all of a row's
    beams: only keys and values of what was generated move."""

    def move(cells):
        return cells.at[:, :, prompt:].set(jnp.take(cells[:, :, prompt:], sources, axis=1))

    return cache.replace(keys=move(cache.keys), values=move(cache.values))
