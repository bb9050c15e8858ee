"""What lies beside the weights of an export: tokenizer, chat template, image processor, ids of tokens."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmjax.data.spec import MediaSpec
from mmjax.hub.aside import KEPT, Origin
from mmjax.hub.chat_template import Prompts, write_template
from mmjax.hub.family import Family, config_of
from mmjax.hub.preprocess import FILES
from mmjax.hub.processor_files import write_processor
from mmjax.hub.token_ids import token_ids, write_stops
from mmjax.hub.tokenizer import CONVERTED, MORE_TEMPLATES
from mmjax.hub.tokenizer_files import requires_tokenizer, write_tokenizer


def copy_files(origin: Path, target: Path) -> None:
    """Copies the files that came with a converted workdir's weights, but for its config.json."""
    came = origin / KEPT
    for file in [*came.glob("*"), *came.glob(f"{MORE_TEMPLATES}/*.jinja")]:
        if file.is_file() and file.name not in ("config.json", CONVERTED):
            (target / file.relative_to(came)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(came))


def write_beside(
    target: Path,
    family: Family,
    spec: Mapping[str, Any],
    prompts: Prompts,
    origin: Origin,
) -> Origin:
    """Makes an exported folder's files read texts and pictures as the model was trained to -> the origin, with the
    ids that its config.json lacks.

    Args:
      target: has the files that came with the weights, if any did. spec: the config's model section, or the part
        of it that the family is. origin: what the weights were made from.

    Raises:
      CheckpointError: as for token_ids.
    """
    changed = requires_tokenizer(target, prompts.section.get("extra", []))
    if changed and not write_tokenizer(target, prompts):
        return origin
    if write_template(target, prompts, family) or changed or not origin.config:
        write_stops(target, prompts)
    if changed or not origin.config:
        ids = token_ids(prompts, family, config_of(spec, family))
        return dataclasses.replace(origin, config=over(origin.config, ids))
    return origin


def over(before: Mapping[str, Any], new: Mapping[str, Any], leave: Collection[str] = ()) -> dict[str, Any]:
    """`before` with the keys of `new`, section by section, except those to leave as they are."""
    merged = dict(before)
    for key, value in new.items():
        if key not in leave:
            inside = before.get(key) if isinstance(before.get(key), Mapping) else {}
            merged[key] = over(inside, value, leave) if isinstance(value, Mapping) else value
    return merged


def write_images(
    target: Path, family: Family, model: Mapping[str, Any], tokenizer: Mapping[str, Any], media: MediaSpec
) -> None:
    """An image processor for what has an encoder of pictures, where none came with the weights.

    Args:
      model, tokenizer: the config's sections. media: of the data that was trained on.
    """
    name = (family.part or "encoders/image").removeprefix("encoders/")
    if name in model["encoders"] and not any((target / file).exists() for file in FILES):
        image_token = (tokenizer.get("names") or {}).get("image_token", media.token)
        write_processor(target, media, model["encoders"][name], family, image_token)
