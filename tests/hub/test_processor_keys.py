"""Every key of an image processor's config: the pixels of `transformers`, or an error that names the key."""

import json
import shutil

import numpy as np
import pytest
import tiled
import transformers
from parity import randomise
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

import mmjax
from mmjax.convert import convert
from mmjax.data.spec import MediaSpec
from mmjax.hub.family import family
from mmjax.hub.image_processor import CLASS_OF, CLASSES, complete_settings
from mmjax.hub.preprocess import pixel_keys, resample_name, square_keys
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.chat import Sampling

S, PATCH = 28, 4  # sides of the encoder's pictures, and of Qwen2-VL's patches
SIZES = [(41, 33), (28, 28), (17, 90), (61, 20), (9, 11), (28, 45)]
SQUARE, CROP = dict(height=S, width=S), dict(size=dict(shortest_edge=S), crop_size=dict(height=S, width=S))
CONFIGS = {
    "llava_next": dict(image_grid_pinpoints=[[S, 2 * S], [2 * S, S], [2 * S, 2 * S]]),
    "qwen2_vl": dict(vision_config=dict(patch_size=PATCH)),
    "qwen2_5_vl": dict(vision_config=dict(patch_size=PATCH)),
}
# model_type, class of `transformers`, what its file says.
PROCESSORS = {
    "clip": ("llava", transformers.CLIPImageProcessorPil, CROP),
    "llava": ("llava", transformers.LlavaImageProcessorPil, CROP),
    "llava padded": ("llava", transformers.LlavaImageProcessorPil, CROP | dict(do_pad=True)),
    "dinov2": ("llava", transformers.BitImageProcessorPil, CROP),
    "blip": ("llava", transformers.BlipImageProcessorPil, dict(size=SQUARE)),
    "siglip": ("llava", transformers.SiglipImageProcessorPil, dict(size=SQUARE)),
    "paligemma": ("paligemma", transformers.SiglipImageProcessorPil, dict(size=SQUARE)),
    "idefics": ("idefics", transformers.IdeficsImageProcessorPil, dict(image_size=S)),
    "llava_next": ("llava_next", LlavaNextImageProcessorPil, CROP | CONFIGS["llava_next"]),
    "idefics3": (
        "idefics3",
        Idefics3ImageProcessorPil,
        dict(size=dict(longest_edge=3 * S), max_image_size=dict(longest_edge=S)),
    ),
    "smolvlm": (
        "smolvlm",
        SmolVLMImageProcessorPil,
        dict(size=dict(longest_edge=2 * S), max_image_size=dict(longest_edge=S), video_sampling=dict(fps=1)),
    ),
    # InternVL's processor has its image processor cut tiles, whatever its file says.
    "internvl": ("internvl", GotOcr2ImageProcessorPil, dict(size=SQUARE, crop_to_patches=True, max_patches=4)),
    "qwen2_vl": (
        "qwen2_vl",
        Qwen2VLImageProcessorPil,
        dict(patch_size=PATCH, size=dict(shortest_edge=256, longest_edge=1024)),
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        Qwen2VLImageProcessorPil,
        dict(patch_size=PATCH, min_pixels=512, max_pixels=2048),
    ),
}
COLOURS = [
    {},
    dict(rescale_factor=1 / 127.5),
    dict(do_rescale=False),
    dict(do_normalize=False),
    dict(do_rescale=False, do_normalize=False),
    dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]),
    dict(image_mean=[0.1, 0.2, 0.3], image_std=0.5, rescale_factor=1 / 256),
    *(dict(resample=k) for k in range(6)),
    dict(do_rescale=None, device=None, do_convert_rgb=None, anything=None),
    dict(do_normalize=None, image_mean=None),
    dict(data_format="channels_first", input_data_format=None, disable_grouping=True, _valid_processor_keys=["a"]),
]
SAME = {  # processor -> changes that are honoured
    "clip": [
        dict(size=dict(shortest_edge=32)),
        dict(size=20),
        dict(size=S, crop_size=S),
        dict(size=[S, S]),
        dict(size=dict(height=36, width=36)),
        dict(size=SQUARE, do_center_crop=False),
        dict(size=S, default_to_square=True, do_center_crop=False),
        dict(do_resize=False),
        dict(do_pad=True, pad_size=S),
    ],
    "llava": [dict(size=dict(shortest_edge=40)), dict(do_resize=False), dict(size=SQUARE)],
    "llava padded": [
        dict(size=dict(shortest_edge=40)),
        dict(do_center_crop=False),
        dict(size=SQUARE),
        dict(image_mean=[0.0, 0.99, 0.5]),
        dict(do_normalize=False),
    ],
    "siglip": [dict(size=dict(shortest_edge=30), do_center_crop=True, crop_size=S)],
    "blip": [dict(size=S)],
    "idefics": [dict(image_size=None, size=S), dict(size=dict(height=50, width=50))],
    "llava_next": [dict(do_center_crop=False), dict(size=SQUARE), dict(do_pad=False), dict(size=S)],
    "idefics3": [dict(do_image_splitting=False), dict(size=dict(longest_edge=50)), dict(do_pad=True, crop_size=7)],
    "internvl": [dict(max_patches=1), dict(min_patches=2, max_patches=6), dict(size=S)],
    "qwen2_vl": [dict(min_pixels=600), dict(max_pixels=700), dict(size=dict(shortest_edge=600, longest_edge=700))],
}
NULLS = dict.fromkeys(
    ["crop_size", "do_center_crop", "do_pad", "pad_size", "device", "return_tensors"]
)  # as saved
SAME["qwen2_vl"].append(NULLS | dict(default_to_square=True, min_pixels=None, max_pixels=None))
SAME["internvl"].append(NULLS | dict(default_to_square=True, disable_grouping=None))
UNSET = dict(size=None, crop_size=None)
REFUSED = {  # processor -> (changes, the key that the error names)
    "clip": [
        (dict(crop_size=24), "crop_size"),
        (dict(crop_size=dict(height=24, width=S)), "crop_size"),
        (dict(size=dict(height=40, width=36)), "size"),
        (dict(size=dict(shortest_edge=S, longest_edge=60)), "size"),
        (dict(size=dict(longest_edge=60)), "size"),
        (dict(size=dict(max_height=60, max_width=60)), "size"),
        (dict(size="large"), "size"),
        (dict(size=0), "size"),
        (dict(size=dict(shortest_edge=28.5)), "size"),
        (dict(size=dict(height=36, width=36), do_center_crop=False), "size"),
        (dict(do_center_crop=False), "do_center_crop"),
        (dict(do_center_crop=False, do_resize=False), "do_resize"),
        (dict(do_pad=True, pad_size=40), "pad_size"),
        (dict(crop_pct=0.9), "crop_pct"),
        (dict(use_square_size=True), "use_square_size"),
        (dict(rescale_offset=True), "rescale_offset"),
        (dict(size_divisor=32), "size_divisor"),
        (dict(image_processor_type="ConvNextImageProcessor"), "image_processor_type"),
        (dict(image_processor_type="LlavaNextImageProcessor"), "image_processor_type"),
        (UNSET, "crop_size"),
    ],
    "llava padded": [
        (dict(do_resize=False), "do_resize"),
        (dict(image_mean=[1.5, 0.5, 0.5]), "image_mean"),
        (dict(do_center_crop=False, size=40), "size"),
    ],
    "siglip": [(dict(size=dict(shortest_edge=S)), "do_center_crop"), (UNSET, "size")],
    "idefics": [(dict(image_size=24), "size"), (dict(image_num_channels=4), "image_num_channels")],
    "llava_next": [
        (dict(image_grid_pinpoints=[[S, S]]), "image_grid_pinpoints"),
        (dict(size=dict(shortest_edge=40)), "size"),
        (dict(crop_size=24), "crop_size"),
        (dict(do_resize=False), "do_resize"),
        (dict(aspect_ratio_setting="pad"), "aspect_ratio_setting"),
    ],
    "idefics3": [
        (dict(max_image_size=dict(longest_edge=24)), "max_image_size"),
        (dict(size=SQUARE), "size"),
        (dict(size=60), "size"),
        (dict(do_resize=False), "do_resize"),
        (dict(do_split_image=True), "do_split_image"),
    ],
    "internvl": [
        (dict(size=dict(height=24, width=S)), "size"),
        (dict(size=24), "size"),
        (dict(min_patches=5, max_patches=4), "min_patches"),
        (dict(do_resize=False), "do_resize"),
        (dict(use_thumbnail=False), "use_thumbnail"),
    ],
    "qwen2_vl": [
        (dict(patch_size=8), "patch_size"),
        (dict(merge_size=3), "merge_size"),
        (dict(temporal_patch_size=1), "temporal_patch_size"),
        (dict(size=dict(shortest_edge=256)), "size"),
        (dict(size=dict(min_pixels=256, max_pixels=1024)), "size"),
        (dict(size=dict(shortest_edge=900, longest_edge=800)), "size"),
        (dict(do_resize=False), "do_resize"),
    ],
}
REFUSED_EVERYWHERE = [
    (dict(do_convert_rgb=False), "do_convert_rgb"),
    (dict(rescale_factor=0), "rescale_factor"),
    (dict(rescale_factor="1/255"), "rescale_factor"),
    (dict(image_mean=[0.5]), "image_mean"),
    (dict(image_std=[0.5, 0.5, 0]), "image_std"),
    (dict(image_std="half"), "image_std"),
    (dict(image_mean=None), "image_mean"),
    (dict(do_resize=None, do_center_crop=None), "do_resize"),
    (dict(resample=None), "resample"),
    (dict(resample=9), "resample"),
    (dict(resample="bicubic"), "resample"),
    (dict(of_a_later_version=1), "of_a_later_version"),
]


def file_of(name, changes):
    """What stands in the image processor's file."""
    _, cls, base = PROCESSORS[name]
    return dict(image_processor_type=cls.__name__.removesuffix("Pil")) | base | changes


def ours(name, changes):
    """From a file to (views, mean, std)."""
    model_type = PROCESSORS[name][0]
    p = complete_settings(file_of(name, changes), "some/preprocessor_config.json", model_type)
    found, config = (
        family(model_type),
        dict(model_type=model_type, vision_config=dict(image_size=S)) | CONFIGS.get(model_type, {}),
    )
    size = PATCH if "qwen" in name else S
    keys = dict(resize="stretch", views=found.views(config, p)) if found.views else square_keys(p, size)
    if found.views and not p["do_resize"]:
        raise p.refused("do_resize", "no")
    if p["do_resize"]:
        keys["resample"] = resample_name(p)
    media = MediaSpec(slots=1, size=size, max_pixels=10_000_000, **keys)
    return media.make_views(), *(np.float32(pixel_keys(p)[key]) for key in ("mean", "std"))


def assert_same(name, changes):
    views, mean, std = ours(name, changes)
    processor = PROCESSORS[name][1](
        **{k: v for k, v in file_of(name, changes).items() if k != "image_processor_type"}
    )
    for size in SIZES:
        picture = tiled.picture(size)
        theirs = processor(picture, return_tensors="np")
        theirs = theirs["pixel_values"] if name != "idefics" else theirs
        tiles = views.cut(picture)
        if isinstance(tiles, dict):
            rows, columns = tiles["grid"][0]
            assert theirs.shape[0] == rows * columns
            tiles = tiles["patches"][0, : rows * columns].reshape(-1, PATCH, PATCH, 3)
            theirs = theirs.reshape(len(tiles), 3, 2, PATCH, PATCH)[:, :, 0]
        theirs = theirs.reshape(-1, *theirs.shape[-3:]).transpose(0, 2, 3, 1)
        assert tiles.shape == theirs.shape, size
        found = (tiles.astype(np.float32) / 255 - mean) / std
        np.testing.assert_allclose(found, theirs, atol=1e-4, rtol=1e-4, err_msg=str(size))


@pytest.mark.parametrize("name", PROCESSORS)
def test_colours_are_the_same(name):
    for changes in COLOURS:
        assert_same(name, changes)


@pytest.mark.parametrize(("name", "changes"), [(name, one) for name, all in SAME.items() for one in all])
def test_sizes_are_the_same(name, changes):
    assert_same(name, changes)


@pytest.mark.parametrize(
    ("name", "changes", "key"), [(name, *one) for name, all in REFUSED.items() for one in all]
)
def test_refused_by_name(name, changes, key):
    with pytest.raises(CheckpointError, match=rf"some/preprocessor_config\.json: {key} is .*: \w+"):
        ours(name, changes)


@pytest.mark.parametrize("name", PROCESSORS)
def test_refused_of_every_class(name):
    for changes, key in REFUSED_EVERYWHERE:
        with pytest.raises(CheckpointError, match=rf"some/preprocessor_config\.json: {key} is "):
            ours(name, changes)


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_file_leaves_out_is_the_classs(name):
    theirs = getattr(transformers, f"{name}Pil")
    for key, value in CLASSES[name][1].items():
        found = getattr(theirs, key, None)
        assert found == value or (found is None and not value), key


def test_internvl_cuts_tiles_whatever_its_image_processor_says():
    """The published files say false; InternVL's processor asks for tiles all the same."""
    assert ours("internvl", dict(crop_to_patches=False))[0].layout((60, 30), 1).tiles == 3
    assert transformers.InternVLProcessor.images_kwargs["crop_to_patches"] is True


def test_a_file_that_names_no_class_has_its_familys():
    for model_type, name in CLASS_OF.items():
        assert complete_settings({}, "it", model_type).name == name
    assert complete_settings(dict(feature_extractor_type="CLIPFeatureExtractor"), "it", "llava").name == (
        "CLIPImageProcessor"
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A LLaVA of random weights, with a tokenizer."""
    config = transformers.LlavaConfig(
        vision_config=dict(model_type="clip_vision_model", **tiled.VISION | dict(image_size=S)),
        text_config=dict(model_type="llama", **tiled.TEXT),
        image_token_index=tiled.IMAGE,
    )
    folder = tmp_path_factory.mktemp("llava") / "hf"
    randomise(transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    tiled.tokenizer().save_pretrained(folder)
    return folder


def loaded(checkpoint, folder, **files):
    """An assistant of the checkpoint with other files beside it."""
    shutil.copytree(checkpoint, folder / "hf")
    for name, content in files.items():
        (folder / "hf" / f"{name}.json").write_text(json.dumps(content))
    convert(folder / "hf", folder / "run")
    return mmjax.load(str(folder / "run"))


def values(assistant, picture):
    encoder = assistant.model.encoders["image"]
    return (assistant.pixels(picture) / 255.0 - np.array(encoder.mean)) / np.array(encoder.std)


@pytest.mark.parametrize("nested", [True, False])
def test_the_processors_own_part_goes_before_an_older_file(checkpoint, tmp_path, nested):
    old = file_of("clip", dict(image_mean=[0.1] * 3, size=dict(shortest_edge=40), rescale_factor=1 / 127.5))
    processor = dict(processor_class="LlavaProcessor", patch_size=14)
    if nested:
        processor["image_processor"] = file_of("clip", dict(image_std=[0.2] * 3))
    assistant = loaded(checkpoint, tmp_path, preprocessor_config=old, processor_config=processor)
    theirs = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "hf")
    for size in SIZES:
        picture = tiled.picture(size)
        expected = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(values(assistant, picture), expected, atol=1e-4)


def test_a_conversation_shows_a_picture_as_a_single_question_does(checkpoint, tmp_path):
    """What is kept for later turns is not cropped a second time."""
    assistant = loaded(checkpoint, tmp_path, preprocessor_config=file_of("clip", dict(size=40)))
    kept = assistant.rgb(tiled.picture((61, 50)))
    assert kept.shape == (50, 61, 3)
    np.testing.assert_array_equal(assistant.pixels(kept), assistant.pixels(tiled.picture((61, 50))))
    conversation = assistant.chat()
    question, picture = "which?", tiled.picture((61, 50))
    sampling = Sampling(max_new=4)
    assert conversation.say(question, image=picture, sampling=sampling) == assistant(
        question, image=picture, sampling=sampling
    )
    assert all(image.shape == (50, 61, 3) for image in conversation.images)


def test_conversion_stops_at_a_key_that_is_not_known(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"processor_config\.json: crop_pct is 0\.9"):
        loaded(checkpoint, tmp_path, preprocessor_config=file_of("clip", dict(crop_pct=0.9)))
    assert not (tmp_path / "run" / "config.json").exists()
