"""Tiny random models of both fusions, prompts and a tokenizer for them, for the tests of this room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import tree
from mmjax.data.chat import Chat
from mmjax.data.image import ImageOptions
from mmjax.data.views import Whole
from mmjax.inference.chat import Assistant, Sampling
from mmjax.inference.program import pad_tokens
from mmjax.model import make_model
from mmjax.types import Batch, Media

LENGTHS = [9, 14, 6, 0]  # of the prompts in most tests: equal shapes share a compiled program
MEDIA_TOKENS = 4
PIXELS = 16


@functools.cache
def tiny_model(fusion, vocab=40, seed=0):
    """A model and its parameters, sharp enough that its favourite tokens differ from place to place."""
    decoder = dict(type="backbones.decoder.Decoder", variant="llama", vocab=vocab, width=32, depth=2)
    decoder |= dict(heads=4, kv_heads=2, head_dim=8, mlp_width=64)
    vit = dict(type="encoders.vit.ViT", variant="vit", stem="conv", position="learned", size=PIXELS, patch=4)
    vit |= dict(width=24, depth=1, heads=2, kv_heads=2, head_dim=12, mlp_width=48, layer=-1)
    if fusion == "splice":
        xattn = None
        projector = dict(type="projectors.mlp.MLP", depth=2, activation="gelu", bias=True)
        projector |= dict(reduce="pixel_shuffle", factor=2, norm="rms")
    else:
        xattn = dict(every=1, first=1, kv_heads=2, norm="layer", gated=False, activation="gelu")
        projector = dict(type="projectors.resampler.Perceiver", latents=4, depth=1, heads=2, head_dim=12)
        projector |= dict(mlp_ratio=2, norm="layer", norm_eps=1e-5, activation="gelu", project=True)
    model = make_model(
        dict(
            encoders=dict(image=vit),
            projectors=dict(image=projector),
            backbone={**decoder, "xattn": xattn},
            fusion=fusion,
        ),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat=False,
        scan=True,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), prompts(fusion, [8]).media)
    return model, random_params(shapes, seed)


def random_params(shapes, seed):
    """Weights drawn by numpy, which compiles nothing; gates open, so that the media count from the start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith("gate"):
            return np.full(leaf.shape, 0.5, leaf.dtype)
        if path.endswith("scale"):
            return np.ones(leaf.shape, leaf.dtype)
        if path.endswith("bias"):
            return (rng.normal(size=leaf.shape) * 0.1).astype(leaf.dtype)
        fan_in = 1 if path.endswith("embedding") else leaf.shape[-2]
        sharper = 3 if path.endswith(("head/kernel", "query/kernel")) else 1
        return (rng.normal(size=leaf.shape) * sharper / np.sqrt(fan_in)).astype(leaf.dtype)

    return tree.map_paths(draw, shapes)


def solid(colour):
    """Pictures of one colour each: uint8 [..., 1, 1, 3] -> [..., PIXELS, PIXELS, 3]."""
    colour = np.asarray(colour, np.uint8)
    return np.broadcast_to(colour, (*colour.shape[:-3], PIXELS, PIXELS, 3)).copy()


def prompts(fusion, lengths, seed=0, vocab=40):
    """A batch of prompts with one picture each, padded on the right to the longest. lengths: at least 6 each,
    or 0 for an empty row."""
    rng = np.random.default_rng(seed)
    rows, longest = len(lengths), max(lengths)
    inside = np.arange(longest) < np.array(lengths)[:, None]
    place = np.arange(longest) - 1  # the picture stands after the first token
    slot = np.where((place >= 0) & (place < MEDIA_TOKENS), place, -1)
    visible = np.where(place >= 0, 0, -1)
    if fusion == "xattn":
        slot = np.full_like(slot, -1)
    media = Media(
        values=solid(rng.integers(0, 256, (rows, 1, 1, 1, 3))),
        valid=np.ones((rows, 1), bool),
        slot=np.where(inside, slot, -1).astype(np.int32),
        visible=np.where(inside, visible, -1).astype(np.int32),
    )
    return Batch(
        tokens=np.where(inside, rng.integers(3, vocab, (rows, longest)), 0).astype(np.int32),
        segments=inside.astype(np.int32),
        positions=np.where(inside, np.arange(longest), 0).astype(np.int32),
        causal=np.ones((rows, longest), np.int32),
        loss_weight=np.zeros((rows, longest), np.float32),
        media={"image": media},
    )


def row_of(batch, row):
    """One row of a batch, without its padding."""
    length = int((batch.segments[row] > 0).sum())
    one = jax.tree.map(lambda x: x[row : row + 1], batch)
    media = {n: m.replace(slot=m.slot[:, :length], visible=m.visible[:, :length]) for n, m in one.media.items()}
    text = ("tokens", "segments", "positions", "causal", "loss_weight")
    return Batch(**{name: getattr(one, name)[:, :length] for name in text}, media=media)


def continued(batch, tokens):
    """The batch with `tokens` int [B, N] after each row's prompt, for one full forward pass."""
    extra = np.shape(tokens)[1]
    lengths = (batch.segments > 0).sum(1)
    batch = jax.tree.map(np.copy, pad_tokens(batch, batch.tokens.shape[1] + extra))
    for row, length in enumerate(lengths):
        new = slice(length, length + extra)
        batch.tokens[row, new] = tokens[row]
        batch.segments[row, new] = 1
        batch.positions[row, new] = np.arange(length, length + extra)
        batch.loss_weight[row, new] = 1
        for media in batch.media.values():
            media.visible[row, new] = media.visible[row, length - 1]
    return batch


def forward_log_probs(model, params, batch):
    """log p of every next token, float64 [B, T, vocab], by the full forward pass."""
    logits = np.asarray(_logits(model, params, batch), np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Letters:
    """A tokenizer whose tokens are letters; all ids before them are special and have no text."""

    letters = "\n \"'-.,?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    specials = {"<image>": 3, "<|im_start|>": 4, "<|im_end|>": 5}
    bos, eos, pad, first = 1, 2, 0, 6
    vocab_size = first + len(letters)
    stops, names = (), {}
    begins, model_max_length = False, 0

    def encode(self, text, start=True):
        return [self.first + self.letters.index(letter) for letter in text], list(range(1, len(text) + 1))

    def decode(self, ids, special=False):
        names = {i: name for name, i in self.specials.items()} if special else {}
        return "".join(self.letters[i - self.first] if i >= self.first else names.get(i, "") for i in ids)

    def special(self, name):
        return self.specials[name]

    def special_tokens(self):
        return {name: (i, False, False) for name, i in self.specials.items()}


def tiny_assistant(fusion="splice", length=192, batch=4, **sampling):
    """An Assistant of a tiny model that speaks in letters."""
    model, params = tiny_model(fusion, vocab=Letters.vocab_size)
    splice = fusion == "splice"
    chat = Chat("chatml", Letters(), span=MEDIA_TOKENS if splice else 1, splice=splice)
    views = Whole(ImageOptions(size=PIXELS, resize="stretch", max_pixels=10_000))
    settings = Sampling(**{"max_new": 8, **sampling})
    return Assistant(model, params, chat, views, length=length, batch=batch, sampling=settings)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
    return model.logits(params, model.apply(params, batch).hidden)
