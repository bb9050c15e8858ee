"""The tokenizer that `AutoTokenizer` of `transformers` 5 makes of a folder's files, made without it.

Which class it takes follows from config.json and tokenizer_config.json. Some classes take of the files the
vocabulary, the merges and the added tokens alone, and bring a normalizer, pre-tokenizer and decoder of their own:
those of tokenizer.json do not count. (transformers 5.23: models/auto/tokenization_auto.py,
tokenization_utils_tokenizers.py, convert_slow_tokenizer.py, models/*/tokenization_*.py.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from absl import logging
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mmjax.hub.folder import read_json
from mmjax.hub.sentencepiece_model import generate_merges, read_sentencepiece
from mmjax.hub.tensors import CheckpointError, shown

Json = Mapping[str, Any]
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
FILES += ("special_tokens_map.json", "added_tokens.json")
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# config.json's model_type -> the class registered for it; '' for one that takes tokenizer.json as it stands.
_REGISTERED = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("internvl", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("phi", "opt"), "GPT2Tokenizer"),
    **dict.fromkeys(("llava", "llava_next", "vipllava", "smolvlm", "mistral", "mixtral"), ""),
    "idefics": "LlamaTokenizer",
}
_PREFERRED = ("qwen2",)  # whose registered class counts, whatever tokenizer_config.json names
_GENERIC = ("", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names of tokens that a class has where tokenizer_config.json is silent.
_END = "<|endoftext|>"
_NAMES = {
    "LlamaTokenizer": dict(unk="<unk>", bos="<s>", eos="</s>"),
    "GemmaTokenizer": dict(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>", mask="<mask>"),
    "Qwen2Tokenizer": dict(unk=_END, eos=_END, pad=_END),
    "GPTNeoXTokenizer": dict(unk=_END, bos=_END, eos=_END, pad="<|padding|>"),
    "GPT2Tokenizer": dict(unk=_END, bos=_END, eos=_END),
    "CodeGenTokenizer": dict(unk=_END, bos=_END, eos=_END),
}


class AutoTokenizer:
    """backend: the `tokenizers.Tokenizer`. names: what it calls its tokens, 'bos_token' -> '<s>'.
    as_given: whether tokenizer.json holds the same tokenizer."""

    def __init__(self, folder: Path):
        """
        Raises:
          CheckpointError: there is no tokenizer, or none that is whole.
        """
        settings, config = optional(folder / "tokenizer_config.json"), optional(folder / "config.json")
        self.folder, self.settings = folder, _with_older(folder, settings)
        given = folder / "tokenizer.json"
        self._json = read_json(given) if given.exists() else None
        self._symbols: list[AddedToken] = []  # of a sentencepiece model
        self.kind = _class(settings, config, self._json, folder)
        try:
            self.backend, added = self._backend()
            self.names = self._names()
            self.backend.add_tokens(self._more_tokens(added))
            self._post_process()
            self.as_given = self._json is not None and json.loads(
                tokenizers.Tokenizer.from_file(str(given)).to_str()
            ) == json.loads(self.backend.to_str())
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            files = shown([name for name in FILES if (folder / name).exists()])
            raise CheckpointError(
                f"{folder}: {files} are no tokenizer: {error}. Download them again, or write them anew with "
                "save_pretrained of transformers' AutoTokenizer."
            ) from error

    def _backend(self) -> tuple[tokenizers.Tokenizer, list[AddedToken]]:
        """The tokenizer before tokens are added to it, and tokens that the file adds."""
        listed = self.settings.get("added_tokens_decoder") or {}
        added = [_token(token) for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
        if self._json is not None:
            if "added_tokens_decoder" not in self.settings:
                added += [_token(_less(one, "id")) for one in self._json.get("added_tokens") or ()]
            model = self._json.get("model") or {}
            vocabulary, merges = model.get("vocab"), model.get("merges")
            if self.kind and not (isinstance(vocabulary, dict) and isinstance(merges, list)):
                logging.warning(
                    "%s: %s has a BPE model; tokenizer.json is taken as it is.", self.folder, self.kind
                )
                self.kind = ""
            if not self.kind:
                return tokenizers.Tokenizer.from_str(json.dumps(self._json)), added
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
            made = _of_class(self.kind, vocabulary, merges, self.settings)
            made.post_processor = tokenizers.Tokenizer.from_str(json.dumps(_minimal(self._json))).post_processor
            return made, added
        if (file := self.folder / "tokenizer.model").exists():
            found = read_sentencepiece(file)
            self._symbols = [AddedToken(n, normalized=False, special=c) for n, c in found.symbols.items()]
            if not self.kind:
                return found.tokenizer(), added
            vocabulary = found.vocabulary
            return _of_class(self.kind, vocabulary, generate_merges(vocabulary), self.settings), added
        if self.kind and (file := self.folder / "vocab.json").exists():
            lines = (self.folder / "merges.txt").read_text("utf-8").splitlines()
            merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#")]
            return _of_class(self.kind, dict(read_json(file)), merges, self.settings), added
        raise CheckpointError(f"{self.folder}: has neither tokenizer.json nor tokenizer.model.")

    def _names(self) -> dict[str, str]:
        defaults = {f"{role}_token": name for role, name in _NAMES.get(self.kind, {}).items()}
        if self._json is None and not self.kind:
            defaults = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        given = {f"{r}_token": self.settings[f"{r}_token"] for r in ROLES if f"{r}_token" in self.settings}
        names = {role: content(token) for role, token in {**defaults, **given}.items()}
        for role, name in names.items():
            if name is not None and not isinstance(name, str):
                raise CheckpointError(
                    f"{self.folder}: tokenizer_config.json or special_tokens_map.json has {role} {name!r}: give "
                    "the name of a token."
                )
        return {role: name for role, name in names.items() if name}

    def _more_tokens(self, added: list[AddedToken]) -> list[AddedToken]:
        """Tokens that the backend lacks: those of the files, those with a role, those set out in the settings."""
        there = self.backend.get_added_tokens_decoder().values()
        known = {repr(token) for token in there}
        more = [token for token in added if repr(token) not in known]
        names = {token.content for token in (*there, *more)}
        flags = {token.content: token for token in added}
        extra = self.settings.get("extra_special_tokens") or self.settings.get("additional_special_tokens")
        by_name = list(extra.values()) if isinstance(extra, Mapping) else []
        extra = [*(self._symbols if by_name or not extra else extra), *by_name]
        specific = [v for k, v in self.settings.items() if k.endswith("_token") and k[:-6] not in ROLES]
        named = [*(self.settings.get(role, name) or name for role, name in self.names.items()), *extra, *specific]
        for token in named:
            name = content(token)
            if isinstance(name, str) and name not in names:
                more.append(flags.get(name) or _token(token))
                names.add(name)
        roles = set(self.names.values())
        for token in more:
            token.special = token.special or token.content in roles
        return more + [_special(name) for name in self.names.values() if self.kind == "Qwen2Tokenizer"]

    def _post_process(self) -> None:
        """Puts bos before and eos behind texts, where nothing but the settings says so."""
        file = self._json is not None
        told = {
            key: bool(self.settings[key]) for key in ("add_bos_token", "add_eos_token") if key in self.settings
        }
        if self.kind == "CodeGenTokenizer" and self.backend.post_processor is None:
            self.backend.post_processor = processors.ByteLevel(trim_offsets=False)
        again = self.kind == "GPTNeoXTokenizer" or self.backend.post_processor is None
        if not again and (file or not told):
            return
        told = {} if file else told  # `transformers` leaves them out where there is a tokenizer.json
        bos = self.names.get("bos_token") if told.get("add_bos_token") else None
        eos = self.names.get("eos_token") if told.get("add_eos_token") else None
        around = [(name, self.backend.token_to_id(name)) for name in (bos, eos) if name]
        single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
        self.backend.post_processor = processors.TemplateProcessing(single, special_tokens=around)


def _class(settings: Json, config: Json, given: Json | None, folder: Path) -> str:
    """The class that brings parts of its own, or '' for that which takes tokenizer.json as it stands.

    Raises:
      CheckpointError: a class that is not known here, where no tokenizer.json says what it makes.
    """
    model_type = config.get("model_type")
    named = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    registered = _REGISTERED.get(model_type)
    byte_level = given is not None and '"ByteLevel"' in json.dumps(given)
    if named == "LlamaTokenizer" and byte_level and model_type not in _PREFERRED:
        return ""
    if not named:
        return registered or ""
    if registered is not None and registered != named:
        named = registered if not registered or model_type in _PREFERRED else named
    if named not in _NAMES and named not in _GENERIC:
        if given is None:
            raise CheckpointError(
                f"{folder}: has no tokenizer.json, and what {named} of transformers makes of its other files is "
                "not known here. Write one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
            )
        logging.warning("tokenizer_class %s is not known here; tokenizer.json is taken as it stands.", named)
    return named if named in _NAMES else ""


def _of_class(kind: str, vocabulary: dict[str, int], merges: list, settings: Json) -> tokenizers.Tokenizer:
    """A tokenizer with the parts that a class of `transformers` brings."""
    space = settings.get("add_prefix_space")
    if kind == "LlamaTokenizer":
        space = space is None or space
        made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True))
        scheme = ("always" if settings.get("legacy", False) else "first") if space else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1)] if space else parts)
        return made
    if kind == "GemmaTokenizer":
        unknown = content(settings.get("unk_token")) or _NAMES[kind]["unk"]
        model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        made = tokenizers.Tokenizer(model)
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        return made
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(space))
    made.decoder = decoders.ByteLevel()
    if kind in ("Qwen2Tokenizer", "GPTNeoXTokenizer"):
        made.normalizer = normalizers.NFC()
    if kind == "Qwen2Tokenizer":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=bool(space), use_regex=False),
            ]
        )
    return made


def _minimal(given: Json) -> dict[str, Any]:
    """A tokenizer.json without its vocabulary."""
    return {**given, "model": {**given["model"], "vocab": {}, "merges": []}, "added_tokens": []}


def _with_older(folder: Path, settings: Json) -> dict[str, Any]:
    """tokenizer_config.json with what older versions wrote to files of their own."""
    if "added_tokens_decoder" in settings:
        return dict(settings)
    older, mapped = dict(settings), dict(optional(folder / "special_tokens_map.json"))
    if older.get("additional_special_tokens") and not older.get("extra_special_tokens"):
        older["extra_special_tokens"] = older.pop("additional_special_tokens")
    extra, more = older.get("extra_special_tokens"), mapped.get("extra_special_tokens")
    if isinstance(extra, list) and isinstance(more, list):
        mapped["extra_special_tokens"] = extra + [token for token in more if token not in extra]
    older |= mapped
    if added := optional(folder / "added_tokens.json"):
        special = {content(older.get(f"{role}_token")) for role in ROLES}
        special |= {content(token) for token in older.get("additional_special_tokens") or ()}
        older["added_tokens_decoder"] = {
            str(number): dict(content=name, normalized=name not in special, special=name in special)
            for name, number in added.items()
        }
        if (folder / "tokenizer.json").exists():
            for token in read_json(folder / "tokenizer.json").get("added_tokens") or ():
                older["added_tokens_decoder"][str(token["id"])] = _less(token, "id")
    return older


def optional(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file."""
    return read_json(file) if file.exists() else {}


def content(token: Any) -> Any:
    """A token's name, however the settings write it down."""
    return token.get("content") if isinstance(token, Mapping) else getattr(token, "content", token)


def _token(token: Json | AddedToken | str) -> AddedToken:
    if isinstance(token, Mapping):
        return AddedToken(**_less(token, "__type"))
    return _special(token) if isinstance(token, str) else token


def _less(token: Json, key: str) -> dict[str, Any]:
    return {k: v for k, v in token.items() if k != key}


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True)
