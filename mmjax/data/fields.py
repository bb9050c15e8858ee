"""What a field of a record may hold: JSON, texts, names of pictures, and keys that nobody reads."""

from __future__ import annotations

import base64
import collections
import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mmjax.errors import UserError

LONGEST = 32 << 20  # bytes of a record; the pictures in its data: URLs are counted
KEYS = 1000  # of a JSON object
EMPTY = (None, "", [], {})  # as good as no key
_TOOLS = dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "tools are not read")
_PREFERENCES = {
    **dict.fromkeys(
        ("chosen", "rejected", "rejected_response", "rejected_messages"),
        "preferences are not read: leave it out, with the better answer as the reply",
    ),
    **dict.fromkeys(  # TRL's and LLaMA-Factory's names in KTO
        ("label", "kto_tag"),
        "judgements are not read: leave out the key, and records whose answer is a bad one",
    ),
}
_SHARES = ("weight", "loss", "loss_weight", "loss_scale", "loss_mask", "sample_weight", "train", "training")


def _elsewhere(more: str) -> dict[str, str]:
    return dict.fromkeys(("mask", "masked", *_SHARES), f"what is learned stands in the replies ('weight'), {more}")


# Keys whose loss would change what is learned, and what to do about each.
RECORD_KEYS = {
    **_TOOLS,
    **_PREFERENCES,
    **_elsewhere("or in a source's weight"),
    **dict.fromkeys(("system_prompt", "system_message"), "the system prompt of a record is its 'system'"),
    **dict.fromkeys(  # TRL's and ms-swift's arguments of a chat template
        ("chat_template_kwargs", "enable_thinking"), "a chat template gets no arguments: leave the key out"
    ),
}
TURN_KEYS = {
    **_TOOLS,
    **_PREFERENCES,
    # 1 is learned to some (GLM), hidden to others (torchtune's `masked`, NeMo's 'User').
    "mask": "trainers do not agree on what it says: write 'weight', 0 for a reply that is not learned",
    **dict.fromkeys(
        ("train_detail", "training_detail", "loss_weights", "token_weights"),
        "a reply has one weight: cut the turn in two, or leave out the key",
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking", "thought", "thoughts"),
        "thoughts are not read: write them into the reply as its template does (<think>...</think>), or not at "
        "all",
    ),
}
PART_KEYS = _elsewhere("whole: cut the turn in two, or leave out the key")  # of a content list
_PICTURES = re.compile(r"(img|image|picture|photo)s?(_?(path|file|url|name|list)s?)?", re.I)
_MEDIA = re.compile(r"(videos?|audios?|frames|point_?clouds?)(_?(path|file|url|list)s?)?", re.I)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.I)
_UNPAIRED = re.compile(r"[\uD800-\uDFFF]")
_RESERVED = re.compile(r"[\U0010FFF0-\U0010FFFF]")  # marks of data/jinja.py and data/tokenizer.py
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80

brief = _BRIEF.repr  # of any value, however long or deep


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object that a record is. Raises UserError: it is none, or too large."""
    if len(text) > LONGEST:
        raise UserError(f"has {len(text):,} bytes; a record may have {LONGEST:,}")
    try:
        record = json.loads(text.decode(), object_pairs_hook=_unique)
    except UserError:
        raise
    except RecursionError:
        raise UserError("is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise UserError(f"is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError("is no JSON object")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise UserError(f"has the key {brief(twice)} twice")
    if len(found) > KEYS:
        raise UserError(f"has {len(found):,} keys; a JSON object may have {KEYS:,}")
    return found


def find_picture(root: Path, name: Any) -> Path | bytes:
    """The file that a record names, or the bytes that stand in it as a data: URL.

    Raises:
      UserError: as for `confine`; it is a URL of another kind, or no text.
    """
    name = check_text(name, "a picture's path")
    if match := _DATA_URL.match(name):
        try:
            return base64.b64decode(name[match.end() :], validate=True)
        except ValueError as error:
            raise UserError(f"the data: URL of a picture is not valid base64: {error}") from error
    if _URL.match(name):
        raise UserError(f"the picture {brief(name)} is a URL: save it in {root} and name the file")
    return confine(root, name)


def check_text(value: Any, what: str) -> str:
    """`value`, a text that can be tokenised. Raises UserError, which calls it `what`."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be a text, not {brief(value)}")
    if _UNPAIRED.search(value):
        raise UserError(f"{what} holds half a surrogate pair: a character was cut in two")
    if odd := _RESERVED.search(value):
        raise UserError(f"{what} holds the code point U+{ord(odd[0]):X}, which mmjax reserves")
    return value


def confine(root: Path, name: str) -> Path:
    """The file `name` inside the folder `root` (resolved).

    Raises:
      UserError: the name leaves the folder, by itself or through a link, or there is no such file.
    """
    shown = brief(name)
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise UserError(f"the picture's path {shown} is absolute; it must be inside {root}")
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise UserError(f"the picture's path {shown} leaves {root}")
        if not path.is_file():
            raise UserError(f"there is no picture {shown} in {root}")
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
        raise UserError(f"the picture's path {shown} cannot be followed: {str(error)[:200]}") from error
    return path


def unread_keys(
    given: Mapping[str, Any],
    known: Sequence[str],
    refused: Mapping[str, str],
    misspelt: Sequence[str] = (),
    pictured: bool = False,
) -> tuple[str, ...]:
    """The keys that are not read and can be done without, as messages show them.

    Args:
      given: keys and values; what is empty says nothing.
      refused: keys whose loss would change what is learned, in lower case, and the remedy.
      misspelt: keys of which a near miss is refused.
      pictured: whether pictures are named by a key that is read.

    Raises:
      UserError: a key whose loss would change what is learned.
    """
    unread = [key for key, value in given.items() if key not in known and value not in EMPTY]
    for key in unread:
        shown = brief(key)
        if key.lower() in refused and not _is_neutral(key.lower(), given[key]):
            raise UserError(f"has the key {shown}: {refused[key.lower()]}")
        if isinstance(given[key], str | list | dict) and (
            _MEDIA.fullmatch(key) or (_PICTURES.fullmatch(key) and not pictured)
        ):
            raise UserError(f"the key {shown} is not read; the record names pictures in 'image' or 'images'")
        if len(key) < 32 and (near := _near(key, misspelt)):
            raise UserError(f"there is no key {shown}; did you mean {near!r}?")
    return tuple(brief(key) for key in unread[:20])


def _is_neutral(key: str, value: Any) -> bool:
    """Whether a share of the loss says what holds anyway: all is learned."""
    return (key in _SHARES and value == 1) or (key == "masked" and value == 0)


def _near(key: str, known: Sequence[str]) -> str | None:
    """The known key that this one is a misspelling of, by a letter or two; 'image_id' is none."""
    found = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.8)
    return next((near for near in found if abs(len(near) - len(key)) <= max(1, len(near) // 4)), None)
