"""The folder of a run, beside its stages' own: config, tokenizer, lock; what of it is trusted, what may change."""

from mmjax.workdir.kept import (
    CONFIG,
    copy_origin,
    copy_tokenizer,
    keep_tokenizer,
    kept_tokenizer,
    open_tokenizer,
    tokenizer_path,
)
from mmjax.workdir.lock import locked
from mmjax.workdir.saved import Saved, load_config, read_raw

__all__ = [
    "CONFIG",
    "Saved",
    "copy_origin",
    "copy_tokenizer",
    "keep_tokenizer",
    "kept_tokenizer",
    "load_config",
    "locked",
    "open_tokenizer",
    "read_raw",
    "tokenizer_path",
]
