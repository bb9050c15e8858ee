"""An assistant: questions and pictures in, answers out.

assistant("What colour is it?", image="a.png")
assistant.generate([Sample("1", (Turn("user", "<image>\nWhat is this?"),), ("a.png",)), ...])
conversation = assistant.chat()
conversation.say("What is this?", image="a.png")
conversation.say("And what colour is it?", sampling=Sampling(temperature=0.7))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.buckets import bucket
from mmjax.data.chat import Chat
from mmjax.data.encoded import Encoded
from mmjax.data.marks import escape_marks, without_marks
from mmjax.data.views import Layout, Views
from mmjax.errors import UserError
from mmjax.inference import memory, sample
from mmjax.inference.beam import beam
from mmjax.inference.prompts import Picture, ask, check, collate, load_rgb, mark, size_of
from mmjax.inference.score import log_likelihood_of_replies
from mmjax.inference.settings import Sampling
from mmjax.inference.text import TextStream, answer
from mmjax.model import MultimodalLM
from mmjax.types import Batch, Sample, Turn

BLIND = "this model has no encoder of pictures"


class Assistant:
    """A trained model with what it takes to talk to it. `sampling` serves calls that bring none of their own."""

    def __init__(
        self,
        model: MultimodalLM,
        params: Mapping[str, Any],
        chat: Chat,
        views: Views,
        *,
        length: int,
        batch: int,
        sampling: Sampling | None = None,
    ):
        """
        Args:
          chat: how conversations are written down; must be that of the training.
          views: how pictures are prepared; likewise.
          length: most tokens of a conversation with its answer; the model has seen no longer ones.
          batch: most prompts that are answered at once, fewer where memory is short (inference/memory.py).
        """
        self.model, self.params = model, jax.tree.map(jnp.asarray, params)
        self.encoder, self.views = chat, views
        self.length, self.batch, self.memory = length, batch, memory.memory_left(self.params)
        self.sampling = sampling or Sampling()

    def __call__(
        self,
        text: str,
        image: Picture | None = None,
        images: Sequence[Picture] = (),
        sampling: Sampling | None = None,
    ) -> str:
        """The answer to one question.

        Args:
          text: may mark the pictures' places by `<image>`; those without a mark stand in front.
          image, images: paths, encoded bytes, arrays (`data.image.from_array`) or PIL images.
          sampling: how to decode; the assistant's own if not given.

        Raises:
          UserError: as for `generate`.
        """
        return self.generate([ask(text, _all(image, images))], sampling)[0]

    def generate(self, prompts: Sequence[Sample], sampling: Sampling | None = None) -> list[str]:
        """The answers to many prompts, each a conversation that ends with the user's turn.

        An answer does not depend on the other prompts; drawn ones depend on the prompt's place in the list.

        Raises:
          ImageError: a picture that cannot be used, and why.
          UserError: marks and pictures disagree, a wrong role or turn, a prompt too long, or more than the memory
            holds; names the prompt's id.
        """
        sampling = sampling or self.sampling
        encoded = [self._encode(prompt, sampling.max_new) for prompt in prompts]
        answers = [""] * len(prompts)
        most = self._most(encoded, sampling.max_new, sampling.beams, sampling.beams)
        for chosen, rows in self._groups(encoded, prompts, min(self.batch, most)):
            batch = self._collate([encoded[i] for i in chosen], [prompts[i] for i in chosen], rows)
            tokens, lengths = self._decode(batch, [*chosen, *[0] * (rows - len(chosen))], sampling)
            for row, i in enumerate(chosen):
                ids = tokens[row, : lengths[row]].tolist()
                answers[i] = answer(self._decoder(sampling), ids, self._stops(sampling), self.encoder.opening)
        return answers

    def stream(self, prompt: Sample, sampling: Sampling | None = None, *, turn: int = 0) -> Iterator[str]:
        """The answer of `generate([prompt])` piece by piece, of a beam search as one piece. turn: row id of the
        randomness. Raises as `generate` does."""
        sampling = sampling or self.sampling
        if sampling.beams > 1:  # which answer is the best is known at its end
            if whole := self.generate([prompt], sampling)[0]:
                yield whole
            return
        encoded = self._encode(prompt, sampling.max_new)
        batch = self._collate([encoded], [prompt], rows=1)
        text = TextStream(self._decoder(sampling), self._stops(sampling), self.encoder.opening)
        steps = sample.stream(self.model, self.params, batch, self._rule(sampling, [turn]), sampling.max_new)
        for token, done in steps:
            piece = "" if done[0] else text.push(int(token[0]))
            if piece:
                yield piece
            if text.stopped:
                return
        if rest := text.finish():
            yield rest

    def score(self, prompt: Sample, candidates: Sequence[str]) -> np.ndarray:
        """log p(candidate | prompt) of each candidate reply, with the end of the reply; float32 [candidates].

        Raises:
          UserError: as for `generate`; an empty candidate.
        """
        return self.score_many([prompt], [candidates])[0]

    def score_many(self, prompts: Sequence[Sample], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The scores of many prompts, each with candidates of its own. Raises as `score` does."""
        found = [np.zeros(len(own), np.float32) for own in candidates]
        encoded = [self._encode(prompt, 0) for prompt in prompts]
        replies = [
            [self._reply(*given, text) for text in own]
            for *given, own in zip(prompts, encoded, candidates, strict=True)
        ]
        width = max(map(len, candidates), default=1)
        longest = max((len(ids) for own in replies for ids, _ in own), default=1)
        most = min(max(1, self.batch // width), self._most(encoded, longest, width, width * longest))
        for chosen, rows in self._groups(encoded, prompts, most):
            length = bucket(max(len(ids) for i in chosen for ids, _ in replies[i]), smallest=4)
            tokens, counted = np.zeros((rows, width, length), np.int32), np.zeros((rows, width, length), bool)
            for row, i in enumerate(chosen):
                for k, (ids, targets) in enumerate(replies[i]):
                    tokens[row, k, : len(ids)], counted[row, k, : len(ids)] = ids, targets
            batch = self._collate([encoded[i] for i in chosen], [prompts[i] for i in chosen], rows)
            scores = log_likelihood_of_replies(self.model, self.params, batch, tokens, counted)
            for row, i in enumerate(chosen):
                found[i][:] = scores[row, : len(found[i])]
        return found

    def _reply(self, prompt: Sample, encoded: Encoded, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(tokens of a reply to the prompt, which of them are targets), up to the last target."""
        # Replies before it weigh nothing: they stand as in the prompt.
        before = (dataclasses.replace(turn, weight=0.0) for turn in prompt.turns)
        whole = dataclasses.replace(prompt, turns=(*before, Turn("assistant", escape_marks(text))))
        reply = self.encoder.encode(whole, self._layouts(prompt))
        self._check_length(prompt, len(reply))
        targets = reply.loss_weight[len(encoded) :] > 0
        end = 1 + int(np.flatnonzero(targets)[-1])
        return reply.tokens[len(encoded) :][:end], targets[:end]

    def chat(self, system: str = "") -> Conversation:
        """A conversation that remembers its turns and pictures."""
        return Conversation(self, system)

    def pixels(self, picture: Picture, name: str = "picture") -> np.ndarray:
        """A picture as the model sees it, uint8 [size, size, 3], or where the model sees tiles, whole, uint8
        [H, W, 3]. Raises ImageError, with its path or `name`."""
        image = load_rgb(picture, self.views, name)
        return np.array(image) if self.views.sized else self.views.cut(image)[0]

    def rgb(self, picture: Picture, name: str = "picture") -> np.ndarray:
        """A picture to ask about later, as it is: whole, uint8 [H, W, 3]. Raises ImageError as `pixels` does."""
        return np.array(load_rgb(picture, self.views, name))

    def _layouts(self, prompt: Sample) -> tuple[Layout, ...]:
        if not self.views.sized:
            return ()
        sizes = [size_of(p, self.views, f"{prompt.id}, picture {k}:") for k, p in enumerate(prompt.images, 1)]
        return tuple(self.views.layout(size, self.encoder.span) for size in sizes)

    def _encode(self, prompt: Sample, max_new: int) -> Encoded:
        check(prompt)
        if prompt.images and "image" not in self.model.encoders:
            raise UserError(f"{prompt.id}: shows a picture, and {BLIND}.")
        turns = prompt.turns if prompt.images else without_marks(prompt.turns)
        encoded = self.encoder.encode_prompt(turns, self._layouts(prompt))
        self._check_length(prompt, len(encoded) + max_new, f"of them {max_new} for the answer; ")
        memory.check_memory(self.model, self.views, prompt, encoded, max_new, self.memory)
        return encoded

    def fitting(self, prompt: int, more: int, copies: int = 1, logits: int = 1, pictures: int = 0) -> int:
        """How many rows are computed at once, `batch` at most; the arguments are those of `memory.text_bytes`, and
        pictures the bytes that a row's take."""
        row = memory.text_bytes(self.model, prompt, more, copies, logits) + pictures
        return memory.rows_that_fit(self.batch, row, self.memory)

    def _most(self, encoded: Sequence[Encoded], more: int, copies: int, logits: int) -> int:
        pictures = [memory.picture_bytes(self.model, memory.patches_of(self.model, one)) for one in encoded]
        longest = bucket(max(map(len, encoded), default=1))
        return self.fitting(longest, more, copies, logits, max(pictures, default=0))

    def _decode(self, batch: Batch, rows: Sequence[int], sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, max_new] and their numbers [B]. rows: ids that the randomness of each row hangs on, the
        prompts' places in their list: an answer is the same however the list is cut into batches."""
        stop = (*self.encoder.stop_ids, *self._stop_tokens(sampling))
        if sampling.beams > 1:
            settings = dict(beams=sampling.beams, max_new=sampling.max_new, stop=stop, pad=0)
            found = beam(self.model, self.params, batch, **settings, length_penalty=sampling.length_penalty)
            return np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
        rule = self._rule(sampling, rows)
        return tuple(map(np.asarray, sample.run(self.model, self.params, batch, rule, sampling.max_new)))

    def _check_length(self, prompt: Sample, tokens: int, note: str = "") -> None:
        if tokens > self.length:
            raise UserError(
                f"{prompt.id}: wants {tokens} tokens, {note}the model's window has {self.length}. Shorten it."
            )

    def _groups(
        self, encoded: Sequence[Encoded], prompts: Sequence[Sample], most: int
    ) -> Iterator[tuple[list[int], int]]:
        """(which prompts, `most` at once, rows of their batch): those of like length together, and those about one
        picture."""
        place: dict[Any, int] = {}
        for prompt in prompts:
            place.setdefault(_shown(prompt), len(place))

        def key(i: int) -> tuple[int, int, int]:
            return encoded[i].media_count, bucket(len(encoded[i])), place[_shown(prompts[i])]

        order = sorted(range(len(encoded)), key=key)
        # The last batch of many is filled up with empty rows: the program for a full one exists already.
        rows = most if len(order) > most else min(most, bucket(len(order), smallest=1))
        for begin in range(0, len(order), most):
            yield order[begin : begin + most], rows

    def _collate(self, encoded: Sequence[Encoded], prompts: Sequence[Sample], rows: int):
        loaded: dict[Any, Any] = {}
        for prompt in prompts:
            for k, picture in enumerate(prompt.images, 1):
                if _key(picture) not in loaded:
                    image = load_rgb(picture, self.views, f"{prompt.id}, picture {k}:")
                    loaded[_key(picture)] = self.views.cut(image)
        pictures = [[loaded[_key(picture)] for picture in prompt.images] for prompt in prompts]
        batch = collate(encoded, pictures, rows, self.views, self.encoder.span)
        return batch if self.model.encoders else batch.replace(media={})

    def _rule(self, sampling: Sampling, rows: Sequence[int]) -> sample.Rule:
        return sample.make_rule(
            len(rows),
            jax.random.key(sampling.seed),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            stop=(*self.encoder.stop_ids, *self._stop_tokens(sampling)),
            pad=0,
            rows=rows,
        )

    def _decoder(self, sampling: Sampling) -> Callable[[Sequence[int]], str]:
        """Token ids of an answer -> its text."""
        tokenizer = self.encoder.tokenizer
        if not sampling.special_tokens:
            return tokenizer.decode
        hidden = {*self.encoder.stop_ids, tokenizer.pad}
        return lambda ids: tokenizer.decode([i for i in ids if i not in hidden], special=True)

    def _stop_tokens(self, sampling: Sampling) -> list[int]:
        """Stop strings that are a token of their own: the loop ends at it, instead of the text being cut later."""
        encoded = [self.encoder.tokenizer.encode(stop, False)[0] for stop in self._stops(sampling) if stop]
        return [ids[0] for ids in encoded if len(ids) == 1]

    def _stops(self, sampling: Sampling) -> tuple[str, ...]:
        return (*self.encoder.stop_strings, *sampling.stop)


class Conversation:
    """Turns and pictures so far. A question that fails or gets no answer leaves no trace; an
    answer cut short stays as it is."""

    def __init__(self, assistant: Assistant, system: str = ""):
        self.assistant, self.system = assistant, system
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system turn."""
        self.turns: list[Turn] = [Turn("system", self.system)] if self.system else []
        self.images: list[np.ndarray] = []

    def say(
        self,
        text: str,
        image: Picture | None = None,
        images: Sequence[Picture] = (),
        sampling: Sampling | None = None,
    ) -> str:
        """The answer to the next question; arguments and errors as for calling the assistant."""
        return "".join(self.stream(text, image, images, sampling))

    def stream(
        self,
        text: str,
        image: Picture | None = None,
        images: Sequence[Picture] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """The answer piece by piece, as by `Assistant.stream`. Leaving it early, or interrupting it, keeps
        what has been said so far."""
        # Loaded now: later turns show the same picture, whatever becomes of its file.
        new = [self.assistant.rgb(picture) for picture in _all(image, images)]
        question = Turn("user", mark(text, len(new)))
        prompt = Sample("conversation", (*self.turns, question), (*self.images, *new))
        said = ""
        try:
            for piece in self.assistant.stream(prompt, sampling, turn=len(self.turns)):
                said += piece
                yield piece
        finally:
            if said:
                self.turns += [question, Turn("assistant", escape_marks(said))]
                self.images += new


def _key(picture: Picture) -> Any:
    """What tells pictures apart without decoding them."""
    return picture if isinstance(picture, (str, bytes, os.PathLike)) else id(picture)


def _shown(prompt: Sample) -> tuple[Any, ...]:
    return tuple(map(_key, prompt.images))


def _all(image: Picture | None, images: Sequence[Picture]) -> list[Picture]:
    return [*([] if image is None else [image]), *images]
