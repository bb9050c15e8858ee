"""From a config to an object: `dict(type='encoders.vit.ViT', width=256, ...)` -> `ViT(width=256, ...)`.

`type` is a dotted name inside mmjax, or a full one (`my_package.projectors.Mine`): a part of one's own needs
no registration. `variant` picks a row of the `VARIANTS` table in the class's module; other keys override it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmjax.errors import UserError


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the nearest known name, or the list of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."


def resolve(name: str, where: str = "type") -> Any:
    """The class or function a dotted name stands for, looked up inside mmjax first.

    Raises:
      UserError: no such module or name; says the nearest right one.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UserError(f"{where}: {name!r} is not a dotted name such as 'projectors.mlp.MLP'.")
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
        raise UserError(f"{where}: no {attribute!r} in {module.__name__}" + suggest(attribute, vars(module)))
    return getattr(module, attribute)


def build(spec: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Builds what `spec` describes. `given` are values its surroundings know (width, dtypes): the spec may
    override them, and those that the class does not take are left out.

    Args:
      spec: a mapping with `type`, perhaps `variant`, and the keyword arguments.
      where: the config path, for messages.

    Raises:
      UserError: an unknown or missing key, with the nearest right one.
    """
    spec = dict(spec)
    if "type" not in spec:
        raise UserError(f"{where}: no 'type' among its keys {sorted(spec)}.")
    cls = resolve(spec.pop("type"), f"{where}.type")
    variant = _variant(cls, spec.pop("variant", None), where)
    parameters = {
        name: p for name, p in inspect.signature(cls).parameters.items() if name not in ("parent", "name")
    }
    for key in spec:
        if key not in parameters:
            raise UserError(f"{where}: {cls.__name__} has no key {key!r}" + suggest(key, parameters))
    given = {key: value for key, value in given.items() if key in parameters}
    arguments = given | dict(variant) | spec
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise UserError(f"{where}: {cls.__name__} wants {', '.join(missing)}.")
    return cls(**arguments)


def _variant(cls: type, variant: str | None, where: str) -> Mapping[str, Any]:
    if variant is None:
        return {}
    table = getattr(inspect.getmodule(cls), "VARIANTS", {})
    if variant not in table:
        message = f"{where}.variant: {cls.__name__} has no variant {variant!r}"
        raise UserError(message + suggest(variant, table))
    return table[variant]
