"""What a Hugging Face folder says of its tokenizer and its chat template, as sections of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from absl import logging

from mmjax.hub.folder import read_json
from mmjax.hub.tensors import CheckpointError

ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask", "image")


def tokenizer_section(folder: Path, kept: Path) -> dict[str, Any]:
    """The `tokenizer` section for a folder's tokenizer.json or tokenizer.model, whose copy lies in `kept`.

    Ids are those of `transformers`: a text begins with bos if its tokenizer puts it there, and a reply ends at
    every eos that generation_config.json names.

    Raises:
      CheckpointError: there is no tokenizer, or none that is whole.
    """
    if (folder / "tokenizer.json").exists():
        return _fast(folder, kept / "tokenizer.json")
    if (folder / "tokenizer.model").exists():
        return _sentencepiece(folder, kept / "tokenizer.model")
    raise CheckpointError(f"{folder}: has neither tokenizer.json nor tokenizer.model.")


def _fast(folder: Path, kept: Path) -> dict[str, Any]:
    file = folder / "tokenizer.json"
    try:
        model = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{file}: is no tokenizer: {error}") from error
    settings, config = _optional(folder / "tokenizer_config.json"), _optional(folder / "config.json")
    names = _names(folder, settings)
    for role in ("bos", "eos", "pad", "image"):
        number = config.get(f"{role}_token_id", config.get(f"{role}_token_index"))
        if f"{role}_token" not in {**names, **settings} and isinstance(number, int):
            name = model.id_to_token(number)
            names |= {f"{role}_token": name} if name else {}
    for role, name in list(names.items()):
        if model.token_to_id(name) is None:
            logging.warning("%s: %s is %r, which is not in the vocabulary; left out.", folder, role, name)
            del names[role]
    bos = names.get("bos_token")
    return dict(
        type="data.tokenizer.HFTokenizer",
        path=str(kept),
        # Its post-processor decides: `transformers` 5 obeys no add_bos_token where there is a tokenizer.json.
        bos=bos if bos and model.encode("a").ids[:1] == [model.token_to_id(bos)] else None,
        eos=names.get("eos_token"),
        pad=names.get("pad_token"),
        stops=_stops(folder, config),
        names=names,
    )


def _sentencepiece(folder: Path, kept: Path) -> dict[str, Any]:
    file = folder / "tokenizer.model"
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file}: is no sentencepiece model: {error}") from error
    settings = _optional(folder / "tokenizer_config.json")
    known = {model.id_to_piece(i) for i in range(model.vocab_size())}
    added = {_content(token) for token in (settings.get("added_tokens_decoder") or {}).values()}
    if new := sorted({*added, *_optional(folder / "added_tokens.json")} - known):
        raise CheckpointError(
            f"{file}: the folder adds tokens to it ({', '.join(new[:5])}), which takes a tokenizer.json. "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of `transformers` writes it."
        )
    if settings.get("add_bos_token") is False:
        raise CheckpointError(f"{file}: add_bos_token=False takes a tokenizer.json beside it.")
    found = {"bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id(), "pad": model.pad_id()}
    names = {f"{role}_token": model.id_to_piece(i) for role, i in found.items() if i >= 0}
    names |= {role: name for role, name in _names(folder, settings).items() if name in known}
    config = _optional(folder / "config.json")
    return dict(type="data.tokenizer.SentencePiece", path=str(kept), stops=_stops(folder, config), names=names)


def template_of(folder: Path) -> str:
    """A config's `template` for a folder: its own in Jinja, or 'bare'. Raises CheckpointError if it is damaged."""
    if (file := folder / "chat_template.jinja").exists():
        return "jinja:" + file.read_text()
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = _optional(folder / name).get("chat_template")
        if isinstance(found, list):  # several, with names
            found = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        if isinstance(found, Mapping):
            found = found.get("default")
        if found is not None and not isinstance(found, str):
            raise CheckpointError(f"{folder / name}: chat_template is no text.")
        if found:
            return "jinja:" + found
    return "bare"


def _names(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """What the folder calls its tokens: 'bos_token' -> '<s>'."""
    older = _optional(folder / "special_tokens_map.json")
    names = {}
    for role in ROLES:
        key = f"{role}_token"
        found = _content(settings[key] if key in settings else older.get(key))
        if found:
            names[key] = found
    more = settings.get("extra_special_tokens") or settings.get("model_specific_special_tokens") or {}
    if isinstance(more, Mapping):
        names |= {key: _content(name) for key, name in more.items()}
    return names


def _stops(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """All ids that end a generation."""
    found = _optional(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int)]


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token
