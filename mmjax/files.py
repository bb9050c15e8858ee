"""Files that users name, and that may come from anyone: what is wrong with them is a UserError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmjax.errors import UserError

LARGEST = 64 << 20  # bytes
DEEPEST = 50  # objects and lists in one another: what reads them may recurse


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, naming the file, if there is none."""
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: has {file.stat().st_size} bytes; such a file has {LARGEST} at most.")
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object.")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    if level:
        raise UserError(f"{file}: is nested more than {DEEPEST} deep.")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # what no path and no tokenizer takes
        raise UserError(f"{file}: holds half a surrogate pair: a character was cut in two.") from error
    return found


def make_folder(folder: Path) -> None:
    """Makes a folder and those that it lies in. Raises UserError if a file is in the way, or it is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if folder.is_file() else error.strerror
        raise UserError(f"{folder}: cannot be made a folder ({reason}); choose another.") from error
