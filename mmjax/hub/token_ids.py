"""Ids of tokens in config.json and generation_config.json of an export: its tokenizer's, no family's default."""

from __future__ import annotations

import json
from pathlib import Path

from mmjax.hub.auto_tokenizer import optional
from mmjax.hub.chat_template import Prompts

GENERATION = "generation_config.json"


def write_stops(target: Path, prompts: Prompts) -> None:
    """generation_config.json with the tokens that end a reply of the model."""
    roles = dict(bos=prompts.tokenizer.bos, pad=prompts.tokenizer.pad)
    made = {f"{role}_token_id": number for role, number in roles.items() if number is not None}
    settings = made | optional(target / GENERATION)
    if (stops := _one_or_all(prompts)) is not None:
        settings["eos_token_id"] = stops
    (target / GENERATION).write_text(json.dumps(settings, indent=2))


def _one_or_all(prompts: Prompts) -> int | list[int] | None:
    """`eos_token_id` as config.json has it."""
    stops = list(prompts.chat.stop_ids)
    return stops if len(stops) > 1 else stops[0] if stops else None
