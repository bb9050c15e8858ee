"""From a config to an object: `dict(type='encoders.vit.ViT', width=256, ...)` -> `ViT(width=256, ...)`.

`type` is a dotted name inside mmjax, or a full one (`my_package.projectors.Mine`): a part of one's own needs
no registration. `variant` picks a row of the `VARIANTS` table in the class's module; other keys override it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.errors import UserError
from mmjax.typed import check_keys, check_types, hints_of, plain, suggest

Rooms = str | tuple[str, ...]


def resolve(name: str, where: str = "type", room: Rooms = "") -> Any:
    """The class or function a dotted name stands for, looked up inside mmjax first.

    Args:
      room: the module or package of mmjax, or several, that its own things of this kind stand in; '' for any.

    Raises:
      UserError: no such module or name; says the nearest right one. Or it stands in another room of mmjax.
    """
    parts = name.split(".") if isinstance(name, str) else ()
    if len(parts) < 2 or not all(map(str.isidentifier, parts)):
        raise UserError(f"{where}: {name!r} is not a dotted name such as 'projectors.mlp.MLP'.")
    module_name, attribute = ".".join(parts[:-1]), parts[-1]
    module = None
    for candidate in (f"mmjax.{module_name}", module_name):
        try:
            module = importlib.import_module(candidate)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not (candidate == error.name or candidate.startswith(error.name + ".")):
                raise  # the module exists; something that it imports does not
    if module is None:
        raise UserError(f"{where}: no module {module_name!r}, neither in mmjax nor on the Python path.")
    if not hasattr(module, attribute):
        own = [
            n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__
        ]
        raise UserError(f"{where}: no {attribute!r} in {module.__name__}" + suggest(attribute, own))
    found = getattr(module, attribute)
    rooms = tuple(f"mmjax.{one}" for one in ((room,) if isinstance(room, str) else room) if one)
    here = inside(module.__name__, rooms) and getattr(found, "__module__", None) == module.__name__
    if rooms and inside(module.__name__, ("mmjax",)) and not here:
        raise UserError(f"{where}: {name!r} is no such part: those of mmjax stand in {' and '.join(rooms)}.")
    return found


def inside(name: str, packages: Sequence[str]) -> bool:
    """Whether a dotted name is one of the packages, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def build(spec: Mapping[str, Any], where: str, *, room: Rooms = "", **given: Any) -> Any:
    """Builds what `spec` describes. `given` are values its surroundings know (width, dtypes): the spec may
    override them, and those that the class does not take are left out.

    Args:
      spec: a mapping with `type`, perhaps `variant`, and the keyword arguments.
      where: the config path, for messages. room: as for `resolve`, of a class.

    Raises:
      UserError: an unknown or missing key, with the nearest right one; or a value that cannot be.
    """
    make = bind(spec, where, room=room, **given)
    if room and not inspect.isclass(make.func):
        raise UserError(f"{where}.type: {spec['type']!r} is no class.")
    try:
        return make()
    except UserError as error:
        raise type(error)(f"{where}.{error}") from error


def bind(
    spec: Mapping[str, Any], where: str, *, room: Rooms = "", positional: int = 0, **given: Any
) -> functools.partial:
    """The function or class that `spec` describes, with its keyword arguments as for `build`, not called yet.
    positional: how many arguments the call will bring, the first ones. Raises as `build` does."""
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: {reprlib.repr(spec)} is no section with a 'type'.")
    spec = dict(spec)
    if "type" not in spec:
        raise UserError(f"{where}: no 'type' among its keys {sorted(spec)}.")
    called = resolve(spec.pop("type"), f"{where}.type", room)
    try:
        signature = inspect.signature(called).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}.type: {called!r} is nothing that a config can build.") from error
    variant = _variant(called, spec.pop("variant", None), where)
    parameters = {name: p for name, p in list(signature.items())[positional:] if name not in ("parent", "name")}
    given = {key: value for key, value in given.items() if key in parameters}
    arguments = given | dict(variant) | spec
    required = [name for name, p in parameters.items() if p.default is p.empty]
    check_keys(arguments, parameters, required, where, owner=called.__name__)
    check_types(spec, hints_of(called), where)
    return functools.partial(called, **arguments)


def section(cls: type, values: Any, where: str) -> Any:
    """A frozen dataclass from the mapping that a config has for it, or the dataclass itself. What of it is such a
    dataclass, alone or in a list or mapping, is made likewise.

    Raises:
      UserError: an unknown or missing key, with the nearest right one, or a value that cannot be; names its path.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {reprlib.repr(values)} is not of type Mapping: it is a section of keys.")
    fields = dataclasses.fields(cls)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    check_keys(values, [field.name for field in fields], required, where)
    hints = hints_of(cls)
    check_types(values, hints, where)
    made = {key: _made(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**made)
    except UserError as error:
        raise type(error)(f"{where}.{error}") from error


def _made(value: Any, hint: Any, where: str) -> Any:
    """A checked value with the dataclasses that its type asks for."""
    hint = plain(hint)
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        # Of types that a config may choose from at most one is no plain one.
        return value if value is None else _made(value, next(one for one in inner if one is not type(None)), where)
    if dataclasses.is_dataclass(kind):
        return section(kind, value, where)
    if isinstance(value, Mapping) and len(inner) == 2:
        return {key: _made(one, inner[1], f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str) and inner:
        hints = inner if kind is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        where += f".{value[0]}" if hints[:1] == (str,) and len(hints) == 2 else ""
        return kind(_made(one, hint, where) for one, hint in zip(value, hints, strict=True))
    return value


def _variant(cls: Any, variant: str | None, where: str) -> Mapping[str, Any]:
    if variant is None:
        return {}
    table = getattr(inspect.getmodule(cls), "VARIANTS", {})
    if not isinstance(variant, str) or variant not in table:
        message = f"{where}.variant: {cls.__name__} has no variant {variant!r}"
        raise UserError(message + suggest(str(variant), table))
    return table[variant]
