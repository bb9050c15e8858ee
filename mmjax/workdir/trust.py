"""What the config of a workdir may name. A config file is its owner's code; a workdir is data from anyone.

A type in it is one that mmjax defines, or a package that the user trusts; nothing else is imported to find out.
What builds a part says in which room of mmjax such parts stand (`build(..., room=)`).
"""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.build import inside, resolve
from mmjax.errors import UserError
from mmjax.files import require_inside

PREFIX = "corpus:"  # of a string that names a module, as data/corpora has it
CORPORA = "mmjax.data.corpora"


def check_names(raw: Mapping[str, Any], trust: Sequence[str], where: str) -> None:
    """Raises UserError if a workdir's config names anything but parts of mmjax and of the packages `trust`.

    Args:
      raw: the config as it was read from JSON.
      trust: names of packages, or of packages in them.
      where: the file, for the message.
    """
    if isinstance(trust, str):
        raise UserError(f"trust: {trust!r} is one name; give a tuple of them: ({trust!r},).")
    if odd := [name for name in trust if not all(map(str.isidentifier, str(name).split(".")))]:
        raise UserError(f"trust: {odd[0]!r} is no name of a package.")
    for keys, value in _walk(raw):
        path = f"{where}: {'.'.join(keys)}"
        if keys[-1:] == ("type",):
            _check_type(value, trust, path)
        elif isinstance(value, str) and value.startswith(PREFIX):
            _check_corpus(value, trust, path)


def check_paths(raw: Mapping[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Raises UserError if what a model's prompts are made with lies outside its workdir: chat templates, and the
    tokenizer, of which the workdir has a copy in its own folder or the file itself."""
    for keys, value in _walk(raw):
        if keys[-1:] == ("template",) and isinstance(value, str) and value.startswith("file:"):
            require_inside(value.removeprefix("file:"), workdir, ".".join(keys))
    tokenizer = raw.get("tokenizer")
    path = tokenizer.get("path") if isinstance(tokenizer, Mapping) else None
    if isinstance(path, str):
        copied = os.path.join(workdir, os.path.basename(path))
        chosen = copied if os.path.isfile(copied) else path
        require_inside(chosen, workdir, "tokenizer.path")
        if os.path.isdir(chosen):
            raise UserError(f"tokenizer.path: {path!r} names no file.")


def _walk(raw: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of everything in a config; items of lists have the keys of their list."""
    left = [((), raw)]
    while left:
        keys, value = left.pop()
        yield keys, value
        if isinstance(value, Mapping):
            left += [((*keys, str(key)), one) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            left += [((*keys, "[]"), one) for one in value]


def _check_type(name: Any, trust: Sequence[str], path: str) -> None:
    """Raises UserError for a dotted name that is not of a class or function which mmjax or a trusted package
    defines. Other names (of an optimizer, of a scaling of rotary positions) are never looked up."""
    if not isinstance(name, str) or "." not in name:
        return
    if not all(part.isidentifier() and part[0] != "_" for part in name.split(".")):
        raise UserError(f"{path}: {reprlib.repr(name)} is not a dotted name such as 'projectors.mlp.MLP'.")
    module = "mmjax." + name.removeprefix("mmjax.").rpartition(".")[0]
    if _is_module(module):
        found = resolve(name.removeprefix("mmjax."), path)
        if (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__ == module:
            return
        raise UserError(f"{path}: {name!r} is nothing that {module} defines.")
    if not inside(name, trust):
        raise UserError(f"{path}: {reprlib.repr(name)} is not in mmjax.{_remedy(name)}")
    found = resolve(name, path)
    if not callable(found) or not inside(getattr(found, "__module__", None) or "", trust):
        raise UserError(f"{path}: {name!r} is not defined in {', '.join(trust)}.")


def _check_corpus(name: str, trust: Sequence[str], path: str) -> None:
    module = name.removeprefix(PREFIX).partition("/")[0]
    if "." in module and not inside(module, trust):
        raise UserError(f"{path}: the corpus {reprlib.repr(module)} is not in {CORPORA}.{_remedy(module)}")
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{path}: {reprlib.repr(module)} is no name of a corpus.")


def _is_module(name: str) -> bool:
    """Whether mmjax has a module of that name."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and inside(name, (error.name,)):
            return False
        raise
    return True


def _remedy(name: str) -> str:
    top = name.partition(".")[0]
    return (
        f" The config of a workdir is data: its types are looked up in mmjax alone. If the package {top} is your "
        f"own, or you trust it, say so: --trust {top}, or mmjax.load(..., trust=({top!r},))."
    )
