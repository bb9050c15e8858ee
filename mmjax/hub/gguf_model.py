"""A GGUF file as a checkpoint: metadata as a config.json and a tokenizer.json, tensors by our families' names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from mmjax.hub.family import Family, find_family, renamed, section_of
from mmjax.hub.folder import Renamed
from mmjax.hub.gguf import GGUFFile
from mmjax.hub.tensors import CheckpointError, Spec, shown
from mmjax.typed import fits, suggest


class Architecture(NamedTuple):
    """model_type: the family it is. interleaved: whether llama.cpp has put the rows of queries and keys in the
    order of rotary positions that turn neighbours (x0, x1), where families turn halves (x0, x_D/2)."""

    model_type: str
    interleaved: bool = False


# `general.architecture` -> what it is here.
ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
_KEYS = {  # below the architecture's name -> config.json
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_REAL = ("attention.layer_norm_rms_epsilon", "rope.freq_base")  # the others are counts
_WANTED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_NAMES = (  # ours of `transformers`; `blk.N.` is `model.layers.N.`
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attn_(q|k)_norm\.", r".self_attn.\1_norm."),
    (r"\.attn_(q|k|v)\.", r".self_attn.\1_proj."),
    (r"\.attn_output\.", ".self_attn.o_proj."),
    (r"\.ffn_(gate|up|down)\.", r".mlp.\1_proj."),
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# `tokenizer.ggml.pre` -> the expressions that cut text, one after the other (llama.cpp, src/llama-vocab.cpp).
PRE_TOKENIZERS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
_WHOLE_WORDS = ("llama-bpe",)  # a word that is in the vocabulary is one token, whatever the merges say
_CONTROL, _USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


class GGUFModel:
    """A GGUF file with the interface of HubFolder."""

    def __init__(self, path: str | os.PathLike[str]):
        """
        Raises:
          CheckpointError: damaged, or an architecture or a setting that is not known here.
          MissingPackage: the `gguf` package is not installed.
        """
        self.path = Path(path)
        self._file = GGUFFile(path)
        self.config = config_of(self._file)
        self.family: Family = find_family(self.config, str(self.path))
        self.spec = section_of(self.family, self.config, str(self.path))
        self.tensors = _Tensors(self._file, self.config)

    def keep(self, folder: Path) -> None:
        """Writes the files that a Hugging Face folder would have beside the weights."""
        tokenizer, settings = tokenizer_of(self._file.metadata, str(self.path))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False))


class _Tensors(Renamed):
    """The file's tensors as the family saves them."""

    def __init__(self, file: GGUFFile, config: Mapping[str, Any]):
        super().__init__(file, lambda name: renamed(name, _NAMES))
        self._heads = {}
        if ARCHITECTURES[file.metadata["general.architecture"]].interleaved:
            self._heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        heads = next((n for part, n in self._heads.items() if f".self_attn.{part}." in name), None)
        if heads is None:
            return super().read(name, index)
        found = super().read(name)
        if not found.size or found.shape[0] % (2 * heads):
            raise CheckpointError(f"{name}: {found.shape} are no rows for {heads} heads.")
        # [heads, D / 2, 2] to [heads, 2, D / 2]: neighbours to halves.
        pairs = found.reshape(heads, -1, 2, *found.shape[1:])
        found = pairs.swapaxes(1, 2).reshape(found.shape)
        return found if index is None else found[index]


def config_of(file: GGUFFile) -> dict[str, Any]:
    """config.json of a GGUF file. Raises CheckpointError for what is not known here."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: the architecture {architecture!r} is not known here"
            + suggest(str(architecture), ARCHITECTURES)
        )
    prefix = f"{architecture}."
    given = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    if missing := [key for key in _WANTED if key not in given]:
        raise CheckpointError(f"{file.path}: lacks {shown([prefix + key for key in missing])}.")
    for key in _KEYS:
        if key in given and (isinstance(given[key], bool) or not isinstance(given[key], int | float)):
            raise CheckpointError(f"{file.path}: {prefix}{key} is {given[key]!r}, not one number for all layers.")
        if key in given and not (given[key] > 0 and (isinstance(given[key], int) or key in _REAL)):
            raise CheckpointError(f"{file.path}: {prefix}{key} is {given[key]!r}.")
    config = {theirs: given[ours] for ours, theirs in _KEYS.items() if ours in given}
    config["rms_norm_eps"] = float(np.format_float_positional(np.float32(config.get("rms_norm_eps", 1e-5))))
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    _check_rest(file, prefix, given, config["head_dim"])
    if len(file.specs.get("token_embd.weight", Spec((), np.dtype(np.float32))).shape) != 2:
        raise CheckpointError(f"{file.path}: has no matrix 'token_embd.weight'.")
    config["vocab_size"] = file.specs["token_embd.weight"].shape[0]
    roles = {role: file.metadata.get(f"tokenizer.ggml.{theirs}_token_id") for role, theirs in _ROLES.items()}
    return config | {
        "model_type": ARCHITECTURES[architecture].model_type,
        "tie_word_embeddings": "output.weight" not in file.specs,
        "attention_bias": "blk.0.attn_q.bias" in file.specs,
        "mlp_bias": "blk.0.ffn_up.bias" in file.specs,
        **{f"{role}_token_id": roles[role] for role in ("bos", "eos", "pad")},
    }


def _check_rest(file: GGUFFile, prefix: str, given: Mapping[str, Any], head_dim: int) -> None:
    """Raises CheckpointError for a setting that would change the numbers, and that nothing here obeys."""
    harmless = {
        "rope.dimension_count": (head_dim,),
        "attention.value_length": (head_dim,),
        "rope.scaling.type": ("none",),
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
    }
    for key, value in given.items():
        if key not in _KEYS and value not in harmless.get(key, ()):
            raise CheckpointError(f"{file.path}: {prefix}{key} = {value!r} is not known here.")
    if scaled := [name for name in file.specs if "rope_f" in name]:
        raise CheckpointError(f"{file.path}: has {scaled[0]}: scaled rotary positions are not known here.")


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """(the tokenizer, its tokenizer_config.json) of a file's metadata. Raises CheckpointError if there is none."""
    given = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    kind, tokens = given.get("model"), given.get("tokens")
    if kind not in _KINDS:
        raise CheckpointError(f"{where}: a tokenizer {kind!r} is not known here; known: {', '.join(_KINDS)}.")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens is no list of texts.")
    kinds = given.get("token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens and .token_type are no vocabulary.")
    try:
        made = _KINDS[kind](given, where)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{where}: its vocabulary and merges are no tokenizer: {error}") from error
    for special, flag in ((True, _CONTROL), (False, _USER_DEFINED)):
        names = [token for token, one in zip(tokens, kinds, strict=True) if one == flag]
        added = [tokenizers.AddedToken(name, normalized=False, special=special) for name in names]
        (made.add_special_tokens if special else made.add_tokens)(added)
    if made.get_vocab_size() != len(tokens):
        raise CheckpointError(f"{where}: its special tokens are not all in its vocabulary.")
    settings: dict[str, Any] = {}
    for role, theirs in _ROLES.items():
        number = given.get(f"{theirs}_token_id")
        if number is not None and not (fits(number, int) and 0 <= number < len(tokens)):
            raise CheckpointError(f"{where}: tokenizer.ggml.{theirs}_token_id is {number} of {len(tokens)}.")
        settings[f"{role}_token"] = None if number is None else tokens[number]
    bos = settings["bos_token"]
    if bos and given.get("add_bos_token", kind == "llama" or given.get("pre") == "llama-bpe"):
        made.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokens.index(bos))])
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return made, settings


def _byte_level(given: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """GPT-2's byte-pair encoding, text cut as `pre` says."""
    pre = given.get("pre")
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre = {pre!r} is not known here" + suggest(str(pre), PRE_TOKENIZERS)
        )
    vocabulary = {token: i for i, token in enumerate(given["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in given["merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS))
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in PRE_TOKENIZERS[pre]]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(given: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Llama's byte-pair encoding with scores: of all pairs that make a token, the best-scored is joined first."""
    vocabulary = {token: i for i, token in enumerate(given["tokens"])}
    scored = []
    for token, score in zip(given["tokens"], given["scores"], strict=True):
        pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        scored += [(-score, vocabulary[a], vocabulary[b], (a, b)) for a, b in pairs]
    merges = [pair for *_, pair in sorted(scored)]
    unknown = given["tokens"][given.get("unknown_token_id", 0)]
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    space = bool(given.get("add_space_prefix", True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space else "never", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if space else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
