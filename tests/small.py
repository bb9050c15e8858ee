"""Small random models of both fusions, and batches written as text, for the tests of models and of training."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import tree
from mmjax.model import make_model
from mmjax.types import Batch, Media

FUSIONS = ("splice", "xattn")
SPAN = 4  # projected tokens of a picture
PIXELS = 16

ENCODER = dict(
    type="encoders.vit.ViT", variant="vit", stem="patch", position="learned", layer=-1,
    size=PIXELS, patch=4, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
)  # fmt: skip
BACKBONE = dict(
    type="backbones.decoder.Decoder", variant="llama", xattn=None,
    vocab=128, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64,
)  # fmt: skip
MLP = dict(
    type="projectors.mlp.MLP", depth=2, activation="gelu", bias=True, reduce="pixel_shuffle", factor=2, norm="rms"
)
PERCEIVER = dict(
    type="projectors.resampler.Perceiver", latents=SPAN, depth=1, heads=2, head_dim=8, mlp_ratio=2,
    norm="layer", norm_eps=1e-5, activation="gelu", project=False,
)  # fmt: skip
XATTN = dict(every=1, first=0, activation="gelu", gated=False, norm="layer")
SPECS = {
    "splice": dict(encoders=dict(image=ENCODER), projectors=dict(image=MLP), backbone=BACKBONE, fusion="splice"),
    "xattn": dict(
        encoders=dict(image=ENCODER),
        projectors=dict(image=PERCEIVER),
        backbone=BACKBONE | dict(xattn=XATTN),
        fusion="xattn",
    ),
}


def small_model(fusion, remat=False, scan=True, **backbone):
    """A float32 model; `backbone` overrides fields of its decoder."""
    spec = copy.deepcopy(SPECS[fusion])
    spec["backbone"] |= backbone
    return make_model(spec, dtype=jnp.float32, param_dtype=jnp.float32, remat=remat, scan=scan)


def random_params(model, seed=0):
    """Weights drawn by numpy, which compiles nothing. Gates are open, biases and norms not at their start, so
    that every parameter counts."""
    return randomise(jax.eval_shape(model.init, jax.random.key(0)), seed)


def randomise(shapes, seed=0):
    """A random array for each leaf of a tree of shapes, of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path.endswith("gate"):
            value = 0.5 + 0.1 * noise
        elif path.endswith("scale"):
            value = 1 + 0.1 * noise
        elif path.endswith("kernel"):
            value = noise / np.sqrt(np.prod(leaf.shape[-2:-1]))
        else:
            value = noise * (1.0 if path.endswith("latents") else 0.3)
        return jnp.asarray(value, leaf.dtype)

    return tree.map_paths(draw, shapes)


def picture(name):
    """A picture for a name: uint8 [PIXELS, PIXELS, 3], no two of its patches alike."""
    colours = np.random.default_rng(list(name.encode())).integers(0, 256, (4, 4, 3), np.uint8)
    return colours.repeat(PIXELS // 4, 0).repeat(PIXELS // 4, 1)


def make_batch(fusion, rows, length, slots=2, bidirectional=False):
    """A Batch of packed rows. Each row is a list of examples, each example a text whose letters are tokens and
    whose `#` marks stand for pictures: [["look #: a cat", "no picture"], ["# a dog"]].

    An example's pictures depend on its text alone, so it is the same example in any row. Every letter but
    an example's first is a target.
    """
    batch = _padding(len(rows), length, slots)
    image = batch.media["image"]
    for r, examples in enumerate(rows):
        end = media = 0
        for segment, example in enumerate(examples, 1):
            begin, seen = end, -1
            for i, letter in enumerate(example):
                here = slice(end, end := end + (SPAN if letter == "#" and fusion == "splice" else 1))
                if letter == "#":
                    seen, media = media, media + 1
                    image.values[r, seen] = picture(example[: i + 1])
                    image.valid[r, seen] = True
                    if fusion == "splice":
                        image.slot[r, here] = seen * SPAN + np.arange(SPAN)
                        batch.causal[r, here] = [1] + [0 if bidirectional else 1] * (SPAN - 1)
                else:
                    batch.tokens[r, here] = ord(letter)
                    batch.loss_weight[r, here] = i > 0
                image.visible[r, here] = seen
            batch.segments[r, begin:end] = segment
            batch.positions[r, begin:end] = np.arange(end - begin)
        assert end <= length, f"row {r} has {end} tokens"
    return batch


def _padding(rows, length, slots):
    zeros, nowhere = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
    media = Media(
        values=np.zeros((rows, slots, PIXELS, PIXELS, 3), np.uint8),
        valid=np.zeros((rows, slots), bool),
        slot=nowhere,
        visible=nowhere.copy(),
    )
    return Batch(
        tokens=zeros,
        segments=zeros.copy(),
        positions=zeros.copy(),
        causal=np.ones_like(zeros),
        loss_weight=np.zeros((rows, length), np.float32),
        media={"image": media},
    )


def read_params(checkpoints, step=None):
    """All that the `params` of a checkpoint hold, on the first device."""
    saved, read = checkpoints.open_params(step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return read(jax.tree.map(lambda leaf: leaf.update(sharding=here), saved))
