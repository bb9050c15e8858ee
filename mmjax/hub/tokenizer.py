"""What a Hugging Face folder says of its tokenizer and its chat template, as sections of a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mmjax.hub.auto_tokenizer import AutoTokenizer, content, optional
from mmjax.hub.generation import GENERATION, warn_of_generation
from mmjax.hub.tensors import CheckpointError, shown

SINGLE_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of named ones
CONVERTED = "mmjax_tokens.json"  # `transformers` looks for names that hold "tokenizer.json"


def tokenizer_section(folder: Path, kept: Path, beside: Path | None = None) -> dict[str, Any]:
    """The `tokenizer` section for a folder's tokenizer, whose files will lie in `kept`, and lie in `beside`
    before, the folder itself if not given.

    Ids are those of `transformers`: a text begins with bos if its tokenizer puts it there, and a reply ends at
    every eos that generation_config.json names; what else that file says and is not honoured (generation.py) is
    named in a warning. Where `transformers` does not take tokenizer.json as it stands, the tokenizer that it makes
    is written there.

    Raises:
      CheckpointError: there is no tokenizer, or none that is whole.
    """
    made = AutoTokenizer(folder)
    warn_of_generation(folder)
    if not made.as_given:
        made.backend.save(str((beside or folder) / CONVERTED))
    config = optional(folder / "config.json")
    names = _names(made)
    for role in ("bos", "eos", "pad", "image"):
        number = config.get(f"{role}_token_id", config.get(f"{role}_token_index"))
        if f"{role}_token" not in {**names, **made.settings} and isinstance(number, int):
            name = made.backend.id_to_token(number)
            names |= {f"{role}_token": name} if name else {}
    bos = names.get("bos_token")
    around = made.backend.encode("a").ids
    if len(around) > 1 and around[-1] == made.backend.token_to_id(names.get("eos_token", "")):
        logging.warning("%s: its tokenizer ends every text with eos; prompts here are left open.", folder)
    return dict(
        type="data.tokenizer.HFTokenizer",
        path=str(kept / ("tokenizer.json" if made.as_given else CONVERTED)),
        bos=bos if bos and around[:1] == [made.backend.token_to_id(bos)] else None,
        eos=names.get("eos_token"),
        pad=names.get("pad_token"),
        stops=_stops(folder, config),
        names=names,
    )


def template_of(folder: Path, processor: bool) -> str:
    """A config's `template` for a folder: its own in Jinja, or 'text'; the one that `apply_chat_template` takes.

    Args:
      processor: whether AutoProcessor of `transformers` reads the folder, as of whole models, or AutoTokenizer:
        they look into other files, in another order (transformers 5.23: processing_utils.py, get_processor_dict;
        tokenization_utils_base.py, _from_pretrained). For a processor that has none, its tokenizer's counts here.

    Raises:
      CheckpointError: it is damaged, or there are several, none of them the default.
    """
    if processor:
        for name in ("processor_config.json", "chat_template.json"):
            if found := _keyed(folder / name):
                return "jinja:" + found
    files = {file.stem: file for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (single := folder / SINGLE_TEMPLATE).exists():
        files = {"default": single} | files
        files |= {"default": single} if processor else {}
    if "default" in files:
        return "jinja:" + _text(files["default"])
    if files:
        raise CheckpointError(_no_default(folder / MORE_TEMPLATES, files))
    found = _keyed(folder / "tokenizer_config.json")
    return f"jinja:{found}" if found else "text"


def _keyed(file: Path) -> str:
    """The chat template in a JSON file, '' for none."""
    found = optional(file).get("chat_template")
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, Mapping)}
    if isinstance(found, Mapping):
        if found and "default" not in found:
            raise CheckpointError(_no_default(file, found))
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{file}: chat_template is no text; give one template, or a list of named ones.")
    return found or ""


def _no_default(where: Path, names: Iterable[Any]) -> str:
    return (
        f"{where}: has the chat templates {shown([str(name) for name in names])}, and none named 'default'; "
        f"copy the one to use to {SINGLE_TEMPLATE}, and remove these."
    )


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: is no text in UTF-8 ({error}); save it as that.") from error


def _names(made: AutoTokenizer) -> dict[str, str]:
    """What the folder calls its tokens: 'bos_token' -> '<s>'."""
    names = dict(made.names)
    if isinstance(image := content(made.settings.get("image_token")), str):
        names["image_token"] = image
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(more := made.settings.get(key), Mapping):
            names |= {role: content(name) for role, name in more.items() if isinstance(content(name), str)}
    return names


def _stops(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """All ids that end a generation."""
    found = optional(folder / GENERATION).get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int)]
