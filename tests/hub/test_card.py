"""The lines of the model card run for every family: what was converted, and a part of it alone."""

import pytest
from parity import save
from small_models import TEXTS, WHOLE, small_model
from test_export_parts import run_card

from mmjax.convert import convert


@pytest.mark.parametrize("name", [*TEXTS, *WHOLE])
def test_of_a_converted_checkpoint(tmp_path, name):
    save(small_model(name), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "out")
    names = run_card(tmp_path / "out")
    assert sum(p.numel() for p in names["model"].parameters()) > 0


PARTS = {
    "clip_vision_model": "llava",
    "siglip_vision_model": "llava of SigLIP and Mistral",
    "dinov2": "llava of DINOv2",
    "internvl_vision": "internvl",
    "idefics3_vision": "idefics3",
    "llama": "llava",
    "mistral": "llava of SigLIP and Mistral",
    "qwen2": "internvl",
}


@pytest.mark.parametrize("part", PARTS)
def test_of_a_part_of_a_converted_checkpoint(tmp_path, part):
    save(small_model(PARTS[part]), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "out", part)
    names = run_card(tmp_path / "out")
    assert names["model"].config.model_type == part
    assert ("processor" in names) == (part not in ("internvl_vision", "idefics3_vision"))
