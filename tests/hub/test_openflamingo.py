"""OpenFlamingo's perceiver and gated cross-attention: outputs and gradients are those of its own modules.

openflamingo.npz holds numbers alone: weights, inputs, and what PerceiverResampler (depth 2) and two
GatedCrossAttentionBlocks (only_attend_immediate_media) of mlfoundations/open_flamingo, src/helpers.py at 655f693,
made of them in float32 on a CPU, weights drawn at random, gates open. The two blocks run one after the other, on
the perceiver's tokens. `grads` and `grad` are those of sum(tokens * tokens_weight) + sum(text * text_weight).
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import TOLERANCE, Arrays, error
from safetensors.numpy import save_file

from mmjax import tree
from mmjax.hub.load import load_parts
from mmjax.hub.openflamingo import block_rows, perceiver_rows
from mmjax.hub.table import moves, to_theirs
from mmjax.hub.tensors import CheckpointError
from mmjax.model import make_model
from mmjax.nn.block import BlockShape, fields_of
from mmjax.nn.masks import cross_mask
from mmjax.nn.xattn import GatedCrossBlock
from mmjax.sharding import make_mesh, shard_tree

PERCEIVER = dict(
    type="projectors.resampler.Perceiver", latents=3, depth=2, heads=2, head_dim=4, mlp_ratio=4,
    norm="layer", norm_eps=1e-5, activation="gelu", project=False,
)  # fmt: skip
BLOCK = dict(
    heads=3, head_dim=6, mlp_width=64, activation="gelu", gated=False, norm="layer", norm_eps=1e-5,
    qkv_bias=False, out_bias=False, mlp_bias=False,
)  # fmt: skip
ENCODER = dict(
    type="encoders.vit.ViT", variant="clip", layer=-1, final_norm="pooled",
    size=8, patch=4, width=12, depth=1, heads=2, kv_heads=2, head_dim=6, mlp_width=24,
)  # fmt: skip
BACKBONE = dict(
    type="backbones.decoder.Decoder", variant="phi", vocab=20, width=16, depth=4, heads=2, kv_heads=2, head_dim=8,
    mlp_width=32, xattn=dict(every=2, first=1, **BLOCK),
)  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).with_name("openflamingo.npz")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    spec = dict(encoders=dict(image=ENCODER), projectors=dict(image=PERCEIVER), backbone=BACKBONE, fusion="xattn")
    return make_model(spec, dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)


def below(prefix, arrays):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


@functools.cache
def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def loaded(model, tensors, folder):
    """{'projectors': ..., 'backbone': {'xattn': ...}} of tensors under OpenFlamingo's names."""
    folder.mkdir()
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    rules = [(part, f"openflamingo:{folder}") for part in ("projectors/image", "backbone/xattn")]
    shapes = shapes_of(model)
    return load_parts(rules, shapes, shard_tree(shapes, make_mesh({"data": 1})))


@pytest.fixture(scope="module")
def forward(model, reference):
    """(params, features, text) -> tokens, and text after each block."""
    differs = BLOCK | dict(kv_heads=BLOCK["heads"], rope_theta=0.0, gate="scalar")
    block = GatedCrossBlock(**fields_of(model.backbone, BlockShape) | differs)
    visible = reference["in/media_locations"].cumsum(1) - 1  # the picture just before
    mask = cross_mask(visible, np.ones((2, 3), bool), tokens=3)

    def run(params, features, text):
        tokens = model.projectors["image"].apply({"params": params["projectors"]["image"]}, features)
        texts = [text]
        for i in range(2):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], params["backbone"]["xattn"])
            media = tokens.reshape(len(tokens), -1, tokens.shape[-1])
            texts.append(block.apply({"params": one}, texts[-1], media, mask=mask)[0])
        return tokens, texts[1:]

    return run


@pytest.fixture(scope="module")
def params(model, reference, tmp_path_factory):
    return loaded(model, below("weights/", reference), tmp_path_factory.mktemp("openflamingo") / "weights")


def test_outputs_and_gradients(model, reference, forward, params, tmp_path):
    def loss(params, features, text):
        tokens, texts = forward(params, features, text)
        sums = (tokens * reference["in/tokens_weight"]).sum() + (texts[-1] * reference["in/text_weight"]).sum()
        return sums, (tokens, texts)

    inputs = params, reference["in/features"], reference["in/text"]
    (by_params, *by_inputs), (tokens, texts) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
    assert error(tokens, reference["out/tokens"]) < TOLERANCE
    assert error(texts[0], reference["out/text_1"]) < TOLERANCE
    assert error(texts[1], reference["out/text"]) < TOLERANCE
    for name, gradient in zip(("features", "text"), by_inputs, strict=True):
        assert error(gradient, reference[f"grad/{name}"]) < TOLERANCE, name
    expected = tree.flatten(loaded(model, below("grads/", reference), tmp_path / "grads"))
    found = tree.flatten(by_params)
    assert set(found) == set(expected)
    for path, gradient in found.items():
        assert error(gradient, np.asarray(expected[path])) < TOLERANCE, path


def test_text_before_the_first_picture_gets_nothing_from_attention(reference, forward, params):
    run = jax.jit(lambda features: forward(params, features, reference["in/text"])[1][-1])
    moved = np.abs(run(reference["in/features"]) - run(-reference["in/features"])).max(-1)
    before = ~reference["in/media_locations"].cumsum(1).astype(bool)
    assert before.any()
    np.testing.assert_array_equal(moved[before], 0)
    assert moved[~before].min() > 1e-3


def test_names_as_they_are_saved(model, reference, params, tmp_path):
    """Blocks inside the language model's layers, `module.` in front, other tensors beside them; and back."""
    weights = below("weights/", reference)
    saved = {"module.lang_encoder.transformer.wte.weight": np.zeros((2, 2), np.float32)}
    for name, array in weights.items():
        if name.startswith("gated_cross_attn_layers."):
            _, layer, rest = name.split(".", 2)
            name = f"lang_encoder.transformer.blocks.{layer}.gated_cross_attn_layer.{rest}"
        saved[f"module.{name}"] = array
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded(model, saved, tmp_path / "saved"), params))

    back = {}
    for rows, part in (
        (perceiver_rows(2), params["projectors"]["image"]),
        (block_rows(), params["backbone"]["xattn"]),
    ):
        for move in moves(rows, part):
            back |= to_theirs(move, Arrays(part))
    renumbered = {
        name.replace("layers.1.", "layers.0.").replace("layers.3.", "layers.1.")
        if "gated" in name
        else name: array
        for name, array in weights.items()
    }
    assert set(back) == set(renumbered)
    for name, array in back.items():
        np.testing.assert_array_equal(array, renumbered[name], err_msg=name)


def test_errors_say_what_is_wrong(model, reference, tmp_path):
    weights = below("weights/", reference)
    uneven = {name.replace("layers.3.", "layers.2."): array for name, array in weights.items()}
    with pytest.raises(CheckpointError, match="before the layers"):
        loaded(model, uneven, tmp_path / "uneven")
    fewer = {name: array for name, array in weights.items() if "gated_cross_attn_layers.3." not in name}
    with pytest.raises(CheckpointError, match=r"missing +gated_cross_attn_layers\.1\."):
        loaded(model, fewer, tmp_path / "fewer")
    shapes = shapes_of(model)
    with pytest.raises(CheckpointError, match="no 'backbone'"):
        load_parts([("backbone", f"openflamingo:{tmp_path / 'fewer'}")], shapes, shapes)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="never loaded"):
        load_parts([("backbone/xattn", f"openflamingo:{tmp_path / 'pickled'}")], shapes, shapes)
