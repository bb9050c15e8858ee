"""One record of a data set to a `Sample`. docs/data.md describes the formats."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.fields import (
    EMPTY,
    PART_KEYS,
    RECORD_KEYS,
    TURN_KEYS,
    brief,
    check_text,
    find_picture,
    parse,
    unread_keys,
)
from mmjax.data.marks import MARK, escape_marks, split_marks, unescape_marks
from mmjax.data.quarantine import LINE, BadRecord
from mmjax.errors import UserError
from mmjax.types import Sample, Turn

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
KEYS = ("id", "image", "images", "conversations", "messages", "system")
# Names of one thing: OpenAI's, ms-swift's, axolotl's, verl's; and its contrary, as torchtune has it.
WEIGHTS = ("weight", "loss_weight", "loss", "loss_scale", "train", "training", "loss_mask", "masked")
READ = ("from", "role", "value", "content", "text", *WEIGHTS)
PICTURE_PARTS = {
    "image": ("image", "url", "path"),
    "image_url": ("image_url",),
}  # a part's type, and its name's key
_ALONE = re.compile(rf"^[ \t]*({MARK}[ \t]*)+\r?$", re.MULTILINE)  # as formats mark a picture, and texts do not
_OBJECTS = re.compile("<bbox>|<ref-object>")  # where ms-swift writes what 'objects' holds


def read_record(text: bytes, where: str, root: Path) -> Sample:
    """The sample that one record holds.

    Args:
      text: a JSON object in UTF-8.
      where: names the record in messages: its file and number.
      root: the folder of its pictures, resolved.

    Raises:
      BadRecord: it cannot be used; says why.
    """
    id = where
    try:
        record = parse(text)
        id = _id(where, record.get("id"))
        return _sample(id, {key: value for key, value in record.items() if value not in EMPTY}, root)
    except UserError as error:
        raise BadRecord(id, str(error), text[:LINE].decode(errors="replace")) from error


def _id(where: str, id: Any) -> str:
    """The record's name in messages and logs: where it stands, and its own id if that is a text or number."""
    if isinstance(id, bool) or not isinstance(id, str | int | float):
        return where
    return where + ":" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(id)[:100])


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A place in a turn where a picture stands: `name` says which, None for the next of the record's."""

    name: Any = None
    index: int | None = None  # which of the record's pictures the part says that it is


@dataclasses.dataclass(frozen=True)
class _Said:
    """A turn: plain texts and pictures in order."""

    role: str
    weight: float
    parts: Sequence[str | _Picture]

    def text(self, pictured: bool) -> str:
        """As a Turn has it, in a sample with pictures or without."""
        if pictured:
            return "".join(MARK if isinstance(part, _Picture) else escape_marks(part) for part in self.parts)
        text = "".join(part for part in self.parts if isinstance(part, str))
        return escape_marks(text) if "\\" + MARK in text else text  # without pictures a mark is a word, too


def _sample(id: str, record: Mapping[str, Any], root: Path) -> Sample:
    names = _names(record)
    misspelt = [key for key in KEYS if key != "id"]
    unread = dict.fromkeys(unread_keys(record, KEYS, RECORD_KEYS, misspelt, bool(names)))
    said = [_said(turn, bool(names), unread) for turn in _turns(record)]
    if "system" in record:
        if said[0].role == "system":
            raise UserError("has a key 'system' and a system turn: leave one out")
        said.insert(0, _Said("system", 1.0, _pieces(check_text(record["system"], "'system'"), bool(names))))
    if "objects" in record and any(_OBJECTS.search(turn.text(True)) for turn in said):
        raise UserError(
            "has the key 'objects': write its boxes and names into the texts, as the model spells them"
        )
    places = [part for turn in said for part in turn.parts if isinstance(part, _Picture)]
    shown = _match(places, names)
    turns = tuple(Turn(turn.role, turn.text(bool(shown)), turn.weight) for turn in said)
    return Sample(id, turns, tuple(find_picture(root, name) for name in shown), tuple(unread))


def _names(record: Mapping[str, Any]) -> list[Any]:
    """The pictures that `image` or `images` names."""
    if "image" in record and "images" in record:
        raise UserError("has both 'image' and 'images': leave one out")
    names = record.get("image", record.get("images", []))
    return names if isinstance(names, list) else [names]


def _turns(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "conversations" in record and "messages" in record:
        raise UserError("has both 'conversations' and 'messages': leave one out")
    turns = record.get("conversations", record.get("messages"))
    if turns is None:
        raise UserError("has no turns in 'conversations' or 'messages'")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError("'conversations' or 'messages' must be a list of turns, each a JSON object")
    return turns


def _said(turn: Mapping[str, Any], named: bool, unread: dict[str, None]) -> _Said:
    """A turn of a record; `named` if the record names pictures, which the turn's text then marks. Keys of it that
    are not read are added to `unread`."""
    keys = unread_keys(turn, READ, TURN_KEYS, ("weight", "loss_weight"))
    unread |= dict.fromkeys(f"{key} in turns" for key in keys)
    role = _only(turn, ("from", "role"))
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"role {brief(role)} is not read; known: {', '.join(ROLES)}")
    role, content = ROLES[role], _only(turn, ("value", "content", "text"))
    if isinstance(content, list):
        parts = _parts(content, unread)
    else:
        text = check_text(content, "a turn's text")
        if not named and role == "user" and _ALONE.search(text):
            raise UserError(f"marks a picture with {MARK}, but names none in 'image' or 'images'")
        parts = _pieces(text, named)
    return _Said(role, _weight(turn, role), parts)


def _pieces(text: str, named: bool) -> list[str | _Picture]:
    """A text and its pictures, one at each mark if the record names any; an escaped mark is the word."""
    if not named:
        return [unescape_marks(text)]
    return [part for piece in split_marks(text) for part in (_Picture(), piece)][1:]


def _weight(turn: Mapping[str, Any], role: str) -> float:
    """What a reply's tokens weigh as targets."""
    weight = _only(turn, WEIGHTS)
    if weight is None:
        return 1.0
    if turn.get("masked") is not None:
        if weight not in (0, 1):
            raise UserError(f"'masked' of a turn must be true or false, not {brief(weight)}")
        weight = 1 - weight
    if not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise UserError(f"a turn's weight must be a number from 0 to 1, not {brief(weight)}")
    if weight and role != "assistant":
        raise UserError(f"a {role} turn has the weight {weight:g}: only replies are targets")
    return float(weight)


def _only(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the one of these keys that a turn has; None if it has none."""
    given = [key for key in keys if turn.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"a turn has both {given[0]!r} and {given[1]!r}: leave one out")
    return turn[given[0]] if given else None


def _parts(content: Sequence[Any], unread: dict[str, None]) -> list[str | _Picture]:
    """A list of parts as OpenAI and Hugging Face have it: texts as they follow one another, each picture on a line
    of its own, as marks stand."""
    parts: list[str | _Picture] = []
    for part in (_part(part, unread) for part in content):
        if part == "":
            continue
        if parts and _Picture in (type(part), type(parts[-1])):
            parts.append("\n")
        parts.append(part)
    return parts


def _part(part: Any, unread: dict[str, None]) -> str | _Picture:
    if not isinstance(part, dict):
        raise UserError(f"a part of a turn must be a JSON object, not {brief(part)}")
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.pop("type", None)
    names = [key for key in PICTURE_PARTS.get(kind, ()) if key in given] if isinstance(kind, str) else []
    if kind == "text" and "text" in given:
        found, read = check_text(given["text"], "a text part"), ("text", "index")
    elif kind == "image" and given.keys() <= {"index"}:
        found, read = _Picture(None, given.get("index")), ("index",)
    elif len(names) == 1:
        name, read = given[names[0]], (*names, "index")
        if kind == "image_url" and isinstance(name, dict):
            keys = unread_keys(name, ("url",), PART_KEYS)
            unread |= dict.fromkeys(f"{key} in image_url" for key in keys)
            name = name.get("url", "")
        found = _Picture(name)
    else:
        raise UserError(f"a part of type {brief(kind)} with the keys {brief(sorted(given))} is not read")
    keys = unread_keys(given, read, PART_KEYS, pictured=bool(names))
    unread |= dict.fromkeys(f"{key} in parts" for key in keys)
    return found


def _match(places: Sequence[_Picture], names: Sequence[Any]) -> list[Any]:
    """The name of each picture, in the order in which the turns show them."""
    open_places = [place for place in places if place.name is None]
    if len(open_places) != len(names):
        what = f"names {len(names)} picture{'s' * (len(names) != 1)}"
        if not open_places:
            raise UserError(f"{what}, but no turn marks its place with {MARK}")
        word = f" (the word is written \\{MARK})" if names else " in 'image' or 'images'"
        raise UserError(f"{what}, but marks {len(open_places)}{word}")
    if any(place.index not in (None, k) for k, place in enumerate(open_places)):
        raise UserError("shows its pictures in another order than it names them")
    rest = iter(names)
    return [next(rest) if place.name is None else place.name for place in places]
