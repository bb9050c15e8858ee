"""Ids of tokens in config.json and generation_config.json of an export: its tokenizer's, no family's default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmjax.hub.auto_tokenizer import optional
from mmjax.hub.chat_template import Prompts
from mmjax.hub.family import Family, Json
from mmjax.hub.generation import GENERATION
from mmjax.hub.tensors import CheckpointError

_INDEXED = ("llava", "llava_next", "paligemma")  # call it image_token_index


def token_ids(prompts: Prompts, family: Family, made: Json) -> dict[str, Any]:
    """Keys of config.json for tokens that a family's model has to know.

    Args:
      made: the other keys of config.json.

    Raises:
      CheckpointError: the tokenizer has no token that stands for pictures, and the family requires one.
    """
    tokenizer = prompts.tokenizer
    text: dict[str, Any] = dict(bos_token_id=prompts.role("bos")[1], eos_token_id=_stops(prompts))
    vocab = made.get("text_config", made).get("vocab_size", 0)
    pad = prompts.role("pad")[1]
    text["pad_token_id"] = pad if (pad or 0) < vocab else None  # it must have a row of the embedding
    if family.part or "text_config" not in made:
        return text
    if prompts.image_token not in tokenizer.special_tokens():
        raise CheckpointError(
            f"tokenizer: has no special token {prompts.image_token!r}, which stands for pictures in the texts of "
            f"{family.model_type}. Name it in tokenizer.extra, or another in data.media.token."
        )
    image = tokenizer.special(prompts.image_token)
    ids = {"text_config": text, "image_token_index" if family.model_type in _INDEXED else "image_token_id": image}
    if prompts.layouts and prompts.layouts[0].grid:
        begin, _, end = prompts.layouts[0].pieces
        ids |= dict(vision_start_token_id=tokenizer.special(begin), vision_end_token_id=tokenizer.special(end))
        video = tokenizer.special_tokens().get("<|video_pad|>", (-1,))
        ids["video_token_id"] = video[0]  # -1, no token at all, where texts have no videos
    return ids


def write_stops(target: Path, prompts: Prompts) -> None:
    """generation_config.json with the tokens that end a reply of the model."""
    roles = {f"{role}_token_id": prompts.role(role)[1] for role in ("bos", "pad")}
    made = {key: number for key, number in roles.items() if number is not None}
    settings = made | optional(target / GENERATION)
    if (stops := _stops(prompts)) is not None:
        settings["eos_token_id"] = stops
    (target / GENERATION).write_text(json.dumps(settings, indent=2))


def _stops(prompts: Prompts) -> int | list[int] | None:
    """`eos_token_id` as config.json has it."""
    stops = list(prompts.chat.stop_ids)
    return stops if len(stops) > 1 else stops[0] if stops else None
