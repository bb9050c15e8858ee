"""The tokenizer of a workdir as files that `AutoTokenizer` of `transformers` reads."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from absl import logging
from tokenizers import AddedToken

from mmjax.hub.auto_tokenizer import ROLES, AutoTokenizer, optional
from mmjax.hub.chat_template import Prompts
from mmjax.hub.sentencepiece_model import read_sentencepiece
from mmjax.types import Turn

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a folder with a tokenizer has one of them
_OTHERS = (*FILES[1:], "merges.txt", "special_tokens_map.json", "added_tokens.json")
_SETTINGS = "tokenizer_config.json"
_SAMPLE = "Hello, World!  It's 12345 + 6 = ünïcödé.\n\n\tEnd"


def requires_tokenizer(target: Path, extra: list[str]) -> bool:
    """Whether an exported folder has no tokenizer yet, or one without the tokens `extra`."""
    if not any((target / name).exists() for name in FILES):
        return True
    return bool(extra) and not set(extra) <= AutoTokenizer(target).backend.get_vocab().keys()


def write_tokenizer(target: Path, prompts: Prompts) -> bool:
    """Writes tokenizer.json and tokenizer_config.json -> whether it could; if not, a warning says why."""
    section, file = prompts.section, prompts.file
    if section["type"].endswith(".HFTokenizer"):
        made = tokenizers.Tokenizer.from_file(str(file))
    elif section["type"].endswith(".SentencePiece"):
        found = read_sentencepiece(file)
        made = found.tokenizer()
        made.add_tokens([AddedToken(name, normalized=False, special=c) for name, c in found.symbols.items()])
    else:
        logging.warning("%s: tokenizer.type=%r cannot be written for transformers.", target, section["type"])
        return False
    names = {f"{role}_token": prompts.role(role)[0] for role in ("bos", "eos", "pad")}
    names = {**prompts.tokenizer.names, **{role: name for role, name in names.items() if name}}
    there = {token.content for token in made.get_added_tokens_decoder().values()}
    special = [n for n in names.values() if n not in there and made.token_to_id(n) is not None]
    made.add_special_tokens([*special, *section.get("extra", ())])
    made.no_padding()
    made.no_truncation()
    begun = prompts.chat.encode_prompt([Turn("user", "a")]).tokens[:1].tolist()
    bos = prompts.tokenizer.bos
    if bos is not None and begun != [bos] and made.encode("a").ids[:1] == [bos]:
        made.post_processor = None  # processors would put a bos before prompts that were trained without
    made.save(str(target / "tokenizer.json"))
    settings = {key: v for key, v in optional(target / _SETTINGS).items() if key != "added_tokens_decoder"}
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False) | settings
    settings |= {role: name for role, name in names.items() if role.removesuffix("_token") in ROLES}
    if prompts.tokenizer.model_max_length:
        settings["model_max_length"] = prompts.tokenizer.model_max_length
    (target / _SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False))
    for name in _OTHERS:
        (target / name).unlink(missing_ok=True)
    return True


def check_tokenizer(target: Path, prompts: Prompts) -> None:
    """Warns if `transformers` makes another tokenizer of an exported folder than was trained with."""
    theirs = AutoTokenizer(target).backend.encode(_SAMPLE, add_special_tokens=False).ids
    if theirs != prompts.tokenizer.encode(_SAMPLE)[0]:
        logging.warning(
            "%s: by the class that transformers takes for this family, tokenizer.json gives other ids than those "
            "trained with; load it by transformers.PreTrainedTokenizerFast.from_pretrained.",
            target,
        )
