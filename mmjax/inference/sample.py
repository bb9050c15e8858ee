"""Decoding: prompts in, tokens out, greedily or by sampling, as one compiled program.

A prompt is a Batch of one example a row (segment 1), padded on the right; rows may differ in length and media.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmjax.data.buckets import bucket
from mmjax.errors import UserError
from mmjax.inference.program import check_positions, last_hidden, pad_tokens
from mmjax.model import MultimodalLM
from mmjax.types import Batch, Cache


@struct.dataclass
class Rule:
    """How the next token is chosen. Another `top_k` compiles another program, other values do not.

    rng: key. rows: int32 [B], what each row's randomness is derived from. temperature, top_p: float32 [B].
    stop: int32 [S], tokens that end a row. pad: int32 [], written after the end.
    """

    rng: jax.Array
    rows: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    stop: jax.Array
    pad: jax.Array
    top_k: int = struct.field(pytree_node=False)


@struct.dataclass
class State:
    """Where decoding stands after `step` tokens: tokens int32 [B, max_new], lengths int32 [B], done bool [B]."""

    step: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    done: jax.Array
    cache: Cache


def generate(
    model: MultimodalLM,
    params: Mapping[str, Any],
    batch: Batch,
    rng: jax.Array,
    *,
    max_new: int,
    temperature: float | Sequence[float],
    top_k: int,
    top_p: float | Sequence[float],
    stop: Sequence[int],
    pad: int,
    rows: Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continues every prompt until a stop token or `max_new` tokens; ends early when all rows have ended.

    A row's tokens depend on its prompt, `rng` and its row id alone: not on the batch that it is part of.

    Args:
      batch: prompts, one a row, padded on the right to any length; a row without a token is left empty.
      max_new: most tokens a row may get; with it and with top_k the program is compiled anew.
      temperature: 0 takes the likeliest token; a number, or one for each row.
      top_k: draw among the k likeliest tokens only; 0 for all.
      top_p: draw among the fewest likeliest tokens that hold this much probability; 1 for all.
      stop: token ids that end a row; they are not part of what is returned.
      pad: token id written after a row's end.
      rows: row ids for the randomness; 0, 1, ... if not given.

    Returns:
      tokens int32 [B, max_new] and lengths int32 [B]; a length below max_new means that a stop token came.

    Raises:
      UserError: max_new below 1, more tokens than learned positions, a negative temperature or top_k, top_p
        outside (0, 1].
    """
    rule = make_rule(len(batch.tokens), rng, temperature, top_k, top_p, stop, pad, rows)
    return run(model, params, batch, rule, max_new)


def run(
    model: MultimodalLM, params: Mapping[str, Any], batch: Batch, rule: Rule, max_new: int
) -> tuple[jax.Array, jax.Array]:
    """`generate` with its settings in a Rule."""
    return _generate(model, params, _ready(model, batch, max_new), rule, max_new)


def stream(
    model: MultimodalLM, params: Mapping[str, Any], batch: Batch, rule: Rule, max_new: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens of `generate` one step at a time: (tokens int32 [B], done bool [B]) until all rows have ended."""
    state = _begin(model, params, _ready(model, batch, max_new), rule, max_new)
    while True:
        step, done = int(state.step), np.asarray(state.done)
        yield np.asarray(state.tokens[:, step - 1]), done
        if done.all() or step == max_new:
            return
        state = _advance(model, params, state, rule)


def make_rule(size, rng, temperature, top_k, top_p, stop, pad, rows=None) -> Rule:
    """The Rule for a batch of `size` rows; for the arguments and errors see `generate`."""
    # Filled in on the host: a jitted call then sees the same shapes whatever form the settings came in.
    temperature, top_p = (np.broadcast_to(np.asarray(x, np.float32), (size,)) for x in (temperature, top_p))
    # Asked for what is right, not for what is wrong: of NaN nothing holds.
    if not ((temperature >= 0) & np.isfinite(temperature)).all() or not top_k >= 0:
        raise UserError(f"temperature {temperature} and top_k {top_k} must not be negative, and finite.")
    if not ((top_p > 0) & (top_p <= 1)).all():
        raise UserError(f"top_p {top_p} must lie above 0 and not above 1.")
    return Rule(
        rng=rng,
        rows=np.asarray(np.arange(size) if rows is None else rows, np.int32),
        temperature=temperature,
        top_p=top_p,
        stop=np.asarray(stop, np.int32),
        pad=np.asarray(pad, np.int32),
        top_k=top_k,
    )


def filter_logits(logits: jax.Array, top_k: int, top_p: jax.Array) -> jax.Array:
    """Sets to -inf what may not be drawn: first all but the k likeliest, then all but the nucleus of those.

    The nucleus is the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020,
    section 3.1); tokens as likely as the last one kept are kept too.

    Args:
      logits: float32 [B, V]. top_k: 0 for all. top_p: float32 [B], 1 for all.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)

    def nucleus():
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept = (before < top_p[:, None]) | (top_p[:, None] >= 1)
        least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
        return jnp.where(logits >= least, logits, -jnp.inf)

    return jax.lax.cond((top_p < 1).any(), nucleus, lambda: logits)  # sorting a whole vocabulary is slow


def choose(logits: jax.Array, rule: Rule, step: jax.Array) -> jax.Array:
    """The next token of each row. logits: float32 [B, V]; step: how many tokens came before -> int32 [B]."""
    likeliest = logits.argmax(-1).astype(jnp.int32)
    warm = rule.temperature > 0

    def draw():
        scaled = logits / jnp.where(warm, rule.temperature, 1)[:, None]
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(rule.rng, row), step))(rule.rows)
        drawn = jax.vmap(jax.random.categorical)(keys, filter_logits(scaled, rule.top_k, rule.top_p))
        return jnp.where(warm, drawn.astype(jnp.int32), likeliest)

    return jax.lax.cond(warm.any(), draw, lambda: likeliest)


def _ready(model: MultimodalLM, batch: Batch, max_new: int) -> Batch:
    if max_new < 1:
        raise UserError(f"max_new is {max_new}; nothing would be generated.")
    check_positions(model, batch, max_new - 1)  # the last token is never read
    return pad_tokens(batch, bucket(batch.tokens.shape[1]))


@functools.partial(jax.jit, static_argnames=("model", "max_new"))
def _generate(model: MultimodalLM, params, batch: Batch, rule: Rule, max_new: int):
    state = _begin(model, params, batch, rule, max_new)
    state = jax.lax.while_loop(
        lambda state: (state.step < max_new) & ~state.done.all(),
        lambda state: _advance(model, params, state, rule),
        state,
    )
    return state.tokens, state.lengths


@functools.partial(jax.jit, static_argnames=("model", "max_new"))
def _begin(model: MultimodalLM, params, batch: Batch, rule: Rule, max_new: int) -> State:
    """Reads the prompts and chooses the first token."""
    rows, length = batch.tokens.shape
    # The last token is never read, so the cache needs no cell for it.
    cache = model.cache(rows, length + max_new - 1)
    hidden, cache = model.prefill(params, batch, cache)
    state = State(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((rows, max_new), rule.pad),
        lengths=jnp.zeros((rows,), jnp.int32),
        done=(batch.segments == 0).all(1),
        cache=cache,
    )
    return _record(model.logits(params, last_hidden(hidden, batch.segments)), state, rule)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def _advance(model: MultimodalLM, params, state: State, rule: Rule) -> State:
    """Reads the newest token and chooses the next."""
    newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1)
    hidden, cache = model.decode(params, newest, state.cache)
    return _record(model.logits(params, hidden[:, 0]), state.replace(cache=cache), rule)


def _record(logits: jax.Array, state: State, rule: Rule) -> State:
    token = choose(logits, rule, state.step)
    done = state.done | jnp.isin(token, rule.stop)
    return state.replace(
        step=state.step + 1,
        tokens=state.tokens.at[:, state.step].set(jnp.where(done, rule.pad, token)),
        lengths=state.lengths + ~done,
        done=done,
    )
