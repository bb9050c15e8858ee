"""The config that a converted checkpoint begins with: it talks as it is, and trains on one's own data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import recipes
from mmjax.hub.aside import KEPT
from mmjax.hub.folder import HubFolder
from mmjax.hub.gguf_model import GGUFModel
from mmjax.hub.preprocess import media_keys, pixel_keys, read_preprocessor
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.tokenizer import template_of, tokenizer_section

Checkpoint = HubFolder | GGUFModel
# Positions of models whose config.json leaves them out, as published ones do (transformers, configuration_*.py).
_POSITIONS = dict(gemma=8192, gemma2=8192, llama=2048, mistral=4096 * 32, qwen2=32768)
CONFIG = '''"""Made by `mmjax convert`. WORKDIR is the folder that this file lies in:

    mmjax train --config WORKDIR/config.py --config.sft.data.sources.main.path=MY.jsonl --workdir WORKDIR
"""

import pathlib

from ml_collections import ConfigDict

from mmjax.workdir import read_raw


def get_config():
    return ConfigDict(read_raw(pathlib.Path(__file__).parent))
'''


def model_section(folder: Checkpoint) -> dict[str, Any]:
    """The `model` section of a config for a folder's model."""
    if folder.family.part == "":
        for encoder in folder.spec["encoders"].values():
            encoder |= pixel_keys(read_preprocessor(folder))
        return folder.spec
    if folder.family.part == "backbone":
        return dict(encoders={}, projectors={}, backbone=folder.spec, fusion="splice")
    raise CheckpointError(
        f"{folder.path}: is {folder.family.part} alone ({folder.family.model_type}). Give it to a model: "
        f"c.load = [({folder.family.part!r}, 'hf:{folder.path}')]."
    )


def workdir_config(folder: Checkpoint, section: Mapping[str, Any], beside: Path, target: Path) -> dict[str, Any]:
    """A config that talks with the model as it is, and trains all of it on `sft.data.sources.main.path`, whatever
    its size (see hub/fit.py).

    Args:
      beside: holds the files that came with the weights; `target`, an absolute path, will have them in KEPT.
    """
    came = folder.path if isinstance(folder, HubFolder) else beside  # messages name the user's own files
    tokenizer = _tokenizer(folder, came, beside, target)
    # A picture in tiles takes a few thousand tokens.
    length = 4096 if folder.family.views else min(tokenizer["model_max_length"] or 2048, 2048)
    template = folder.family.template or template_of(came, processor=folder.family.part == "")
    data = recipes.data(
        dict(main=recipes.source("")), media_section(folder, section), template=template, length=length
    )
    return recipes.run(
        section,
        tokenizer,
        dict(sft=recipes.stage(data, recipes.adamw(2e-5), batch=32, steps=1000)),
        load=[("", f"mmjax:{target}")],
        compute_dtype="float32",
        frozen_dtype="float32",
        remat=False,
    )


def _tokenizer(folder: Checkpoint, came: Path, beside: Path, target: Path) -> dict[str, Any]:
    """The `tokenizer` section. Processors of whole models put bos where tokenizers do, if no template does; those
    with a format of their own always."""
    section = tokenizer_section(came, target / KEPT, beside)
    if folder.family.template:
        section["bos"] = section["names"].get("bos_token")
    return section | dict(begins=folder.family.part == "", model_max_length=window(folder.config))


def window(config: Mapping[str, Any]) -> int:
    """Positions of a config.json's language model, 0 if they are not known."""
    text = config.get("text_config")
    text = {**config, **(text if isinstance(text, Mapping) else {})}
    found = next((text[key] for key in ("max_position_embeddings", "max_seq_len") if text.get(key)), None)
    return found or _POSITIONS.get(text.get("model_type"), 0)


def media_section(folder: Checkpoint, section: Mapping[str, Any]) -> dict[str, Any]:
    """The `data.media` section for a folder's model."""
    media = recipes.pictures(224, slots=0)
    if "image" in section["encoders"]:
        media |= dict(slots=16 if folder.family.views else 4)
        media |= media_keys(folder, section["encoders"]["image"], read_preprocessor(folder))
    return media
