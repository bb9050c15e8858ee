"""Vision families: hidden states and pooled outputs are those of `transformers`; weights survive both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import TOLERANCE, Arrays, assert_same_weights, error, randomise

from mmjax.build import build
from mmjax.convert import write_folder
from mmjax.hub.aside import Origin, find_origin
from mmjax.hub.folder import HubFolder
from mmjax.hub.load import load_parts
from mmjax.hub.tensors import CheckpointError
from mmjax.sharding import make_mesh, shard_tree

SIZE, PATCH, DEPTH = 28, 7, 3
GRID = (SIZE // PATCH) ** 2
SIZES = dict(hidden_size=32, num_hidden_layers=DEPTH, num_attention_heads=2, patch_size=PATCH, hidden_act="gelu")
FIXED = SIZES | dict(image_size=SIZE)
CLIP = FIXED | dict(intermediate_size=48, hidden_act="quick_gelu")
SIGLIP = CLIP | dict(hidden_act="gelu_pytorch_tanh")
SIGLIP2 = {k: v for k, v in SIGLIP.items() if k != "image_size"} | dict(num_patches=GRID)
TEXT = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, eos_token_id=2
)
CLIP_BOTH = transformers.CLIPConfig(vision_config=CLIP, text_config=TEXT, projection_dim=8)
SIGLIP_BOTH = transformers.SiglipConfig(vision_config=SIGLIP, text_config=TEXT)
# The model; how its pooled output is called here.
MODELS = {
    "clip-alone": (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP)), "cls"),
    "clip-both": (lambda: transformers.CLIPModel(CLIP_BOTH), "cls"),
    "siglip": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP)), "map"),
    "siglip-both": (lambda: transformers.SiglipModel(SIGLIP_BOTH), "map"),
    "siglip2": (lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIGLIP2)), "map"),
    "dinov2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**FIXED)), "cls"),
    "dinov2-gated": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**FIXED, use_swiglu_ffn=True)),
        "cls",
    ),
    "dinov2-registers": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**FIXED)),
        "cls",
    ),
    "eva": (
        lambda: transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**FIXED, intermediate_size=48)),
        "cls",
    ),
    "eva-no-bias": (
        lambda: transformers.Blip2VisionModel(
            transformers.Blip2VisionConfig(**FIXED, intermediate_size=48, qkv_bias=False)
        ),
        "cls",
    ),
}
LAYERS = (0, 1, -2, -1)


def outputs(theirs, values):
    """Its hidden states and outputs for [B, H, W, 3] normalised pixels."""
    tower = getattr(theirs, "vision_model", theirs)
    if tower.config.model_type == "siglip2_vision_model":
        side = SIZE // PATCH
        cut = (
            values.reshape(-1, side, PATCH, side, PATCH, 3)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(len(values), GRID, -1)
        )
        known = dict(
            pixel_attention_mask=torch.ones(len(values), GRID), spatial_shapes=torch.tensor([[side, side]] * 2)
        )
        return tower(cut, **known, output_hidden_states=True)
    return tower(values.permute(0, 3, 1, 2), output_hidden_states=True)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_weights_of(name, tmp_path):
    make, pool = MODELS[name]
    theirs = randomise(make())
    theirs.save_pretrained(tmp_path / "hf")
    folder = HubFolder(tmp_path / "hf")
    given = dict(dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)
    encoder = build(folder.spec | dict(pool=pool), "encoder", **given)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, SIZE, SIZE, 3), np.uint8)
    shapes = {"encoders": {"image": jax.eval_shape(encoder.init, jax.random.key(0), pixels)["params"]}}
    rules = [("encoders/image", f"hf:{tmp_path / 'hf'}")]
    params = load_parts(rules, shapes, shard_tree(shapes, make_mesh({"data": 1})))

    # One program for all features: each is another view of one set of parameters.
    views = [encoder.clone(layer=k, pool="all", final_norm=False) for k in LAYERS]
    views += [encoder.clone(pool="all"), encoder]
    run = jax.jit(lambda params: [view.apply({"params": params}, pixels)[:, 0] for view in views])
    *hidden, last, pooled = map(np.asarray, run(params["encoders"]["image"]))
    values = (pixels[:, 0].astype(np.float32) / 255 - np.float32(encoder.mean)) / np.float32(encoder.std)
    expected = outputs(theirs, torch.tensor(values))
    for k, state in zip(LAYERS, hidden, strict=True):
        assert error(state, expected.hidden_states[k]) < TOLERANCE, k
    pooled = pooled[:, 0]
    if name.startswith("clip"):  # it norms the class token alone
        last = hidden[-1]
    if "eva" in name:  # and here once more
        norm = [parameter.detach() for parameter in theirs.post_layernorm.parameters()]
        pooled = torch.nn.functional.layer_norm(torch.tensor(pooled), pooled.shape[-1:], *norm, 1e-6).numpy()
    assert error(pooled, expected.pooler_output) < TOLERANCE
    assert error(last, expected.last_hidden_state) < TOLERANCE

    origin = Origin(folder.config, folder.tensors)
    write_folder(folder.family, folder.spec | dict(pool=pool), Arrays(params), origin, tmp_path / "back")
    assert_same_weights(theirs, type(theirs).from_pretrained(tmp_path / "back"))


def test_an_encoder_alone_is_no_two_tower_model(tmp_path):
    """Its text tower comes from the checkpoint that the encoder was loaded from, or there is no such model."""
    theirs = randomise(transformers.CLIPModel(CLIP_BOTH))
    theirs.save_pretrained(tmp_path / "hf")
    folder = HubFolder(tmp_path / "hf")
    encoder = build(folder.spec, "encoder", dtype=jnp.float32, param_dtype=jnp.float32, remat=False, scan=True)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 1, SIZE, SIZE, 3), np.uint8))["params"]
    zeros = Arrays({"encoders": {"image": jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)}})
    with pytest.raises(CheckpointError, match=r"CLIPModel is more than encoders/image"):
        write_folder(folder.family, folder.spec, zeros, Origin({}), tmp_path / "back")
    origin = find_origin([("encoders/image", f"hf:{tmp_path / 'hf'}")], tmp_path, folder.family)
    write_folder(folder.family, folder.spec, zeros, origin, tmp_path / "back")
    back = transformers.CLIPModel.from_pretrained(tmp_path / "back")
    assert not back.vision_model.embeddings.position_embedding.weight.any()
    assert torch.equal(back.visual_projection.weight, theirs.visual_projection.weight)
    assert torch.equal(
        back.text_model.embeddings.token_embedding.weight, theirs.text_model.embeddings.token_embedding.weight
    )


def test_pictures_that_are_no_squares_are_refused(tmp_path):
    theirs = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIGLIP2 | dict(num_patches=15)))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="num_patches 15 is no square grid"):
        HubFolder(tmp_path)
