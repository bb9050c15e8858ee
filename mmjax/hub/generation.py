"""What a checkpoint's generation_config.json says of decoding, as `generate` of transformers 5 reads it
(generation/configuration_utils.py, GenerationConfig)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import logging

from mmjax.hub.folder import read_json
from mmjax.hub.tensors import CheckpointError

GENERATION = "generation_config.json"
# Keys that change answers and that nothing here stands for -> the values with which they do not, besides None.
_ALWAYS = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "penalty_alpha"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ([], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"), ([],)),
    **dict.fromkeys(("exponential_decay_length_penalty", "max_time", "watermarking_config", "dola_layers"), ()),
    "num_beam_groups": (1,),
}
_USUAL = dict(temperature=1.0, top_k=50, top_p=1.0)  # of a file that draws
_DRAWN = {"min_p": (0,), "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": ()}
_SEARCHED = {"early_stopping": (False, "never"), "diversity_penalty": (0,)}


def generation_settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(fields of `inference.settings.Sampling`, keys that would change answers and are not honoured) of a folder.

    As in transformers, temperature, top_k and top_p count only where do_sample is true, length_penalty only where
    there is more than one beam, and what a file that draws leaves unsaid is temperature 1, top_k 50, top_p 1.

    Raises:
      CheckpointError: the file is damaged.
    """
    found = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    said = {key: value for key, value in found.items() if value is not None}
    drawn, beams = said.get("do_sample", False), said.get("num_beams", 1)
    if not isinstance(drawn, bool):
        raise CheckpointError(f"{folder / GENERATION}: do_sample is {drawn!r}, and neither true nor false.")
    searched = beams != 1
    settings: dict[str, Any] = {}
    if "max_new_tokens" in said:
        settings["max_new"] = said["max_new_tokens"]
    if searched:
        settings |= dict(beams=beams, length_penalty=said.get("length_penalty", 1.0))
    elif drawn and said.get("top_p") != 0:  # with 0, only the likeliest token is left
        settings |= {
            key: said.get(key, usual) for key, usual in dict(temperature=1.0, top_k=50, top_p=1.0).items()
        }
    if stop := said.get("stop_strings"):
        settings["stop"] = (stop,) if isinstance(stop, str) else stop
    neutral = _ALWAYS | (_DRAWN if drawn else {}) | (_SEARCHED if searched else {})
    unread = [key for key, values in neutral.items() if key in said and said[key] not in values]
    if searched and drawn:
        unread.append("do_sample (there are beams, and they draw nothing here)")
    if "max_length" in said and "max_new_tokens" not in said:
        unread.append("max_length (max_new counts the answer's tokens alone)")
    return settings, unread


def warn_of_generation(folder: Path) -> None:
    """Names in one warning what of a folder's generation_config.json is not honoured. Raises as above."""
    if unread := generation_settings(folder)[1]:
        logging.warning(
            "%s: not honoured here, so that answers may differ from those of transformers: %s.",
            *(folder / GENERATION, ", ".join(unread)),
        )
