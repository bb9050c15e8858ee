"""Renders Jinja templates that come with checkpoints: nobody's code, so they get words and lists, and little else.

Jinja's own sandbox keeps a template from Python's internals. What it lacks is a bound: here every turn of a loop,
every call and every text made is paid for from a budget, so that no template runs for long or fills the memory.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes, runtime, sandbox
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.utils import Namespace

from mmjax.data.budget import TURN, budget, pay, pay_for, pay_joined, pay_replaced
from mmjax.errors import UserError

SOURCE = 200_000  # most characters of a template
METHODS = {
    str: frozenset(
        {"strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "startswith", "endswith", "split", "rsplit"}
        | {"splitlines", "partition", "rpartition", "upper", "lower", "title", "capitalize", "swapcase", "find"}
        | {"rfind", "index", "count", "join", "replace", "isdigit", "isalpha", "isalnum", "isspace"}
        | {"isupper", "islower", "isnumeric"}
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
}
FILTERS = frozenset(
    {"abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int"}
    | {"items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round"}
    | {"safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper", "wordcount"}
)


class TemplateError(UserError):
    """A template that cannot be used, or not for this conversation: says why."""


class _Names(Namespace):
    """`namespace()` without names that Python keeps for itself."""

    def __init__(*args: Any, **kwargs: Any):  # as Namespace: `self` may be a name
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it sets the attribute {name!r}")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _now(format: str) -> str:
    if re.search(r"%[^a-zA-Z%]", format):
        raise SecurityError(f"it formats a time by {format!r}")
    return datetime.datetime.now().strftime(format)


def _range(*bounds: int) -> range:
    found = sandbox.safe_range(*bounds)
    pay(8 * len(found))
    return found


def _dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    pay_for(value)
    if isinstance(indent, str) or (indent or 0) > 16:
        raise SecurityError(f"it indents by {indent!r}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _join(value: Any, d: str = "") -> str:
    parts = list(value)
    pay_joined(str(d), parts)
    return str(d).join(map(str, parts))


def _replace(s: Any, old: str, new: str, count: int | None = None) -> str:
    pay_replaced(str(s), str(old), str(new))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str) and width > 100:
        raise SecurityError(f"it indents by {width}")
    space = width if isinstance(width, str) else " " * width
    lines = (s + "\n").splitlines()
    pay(len(lines) * len(space) + len(s))
    indented = [space + line if (line or blank) and (i or first) else line for i, line in enumerate(lines)]
    return "\n".join(indented)


class _Generation(Extension):
    """`{% generation %}`: marks a reply for `transformers`; here its body alone counts."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%", "/", "//"])

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=self._output,
        )
        chosen = {name: self.filters[name] for name in FILTERS}
        chosen |= dict(tojson=_tojson, join=_join, replace=_replace, indent=_indent)
        self.filters = {name: self._paid(filter) for name, filter in chosen.items()}
        self.globals = dict(range=_range, dict=_dict, namespace=_Names, raise_exception=_raise, strftime_now=_now)

    @staticmethod
    def _output(value: Any) -> Any:
        pay_for(value)
        return value

    @staticmethod
    def tick(cost: int) -> bool:
        pay(TURN + cost)
        return True

    @staticmethod
    def concatenate(*parts: Any) -> str:
        pay_for(parts)
        return "".join(map(str, parts))

    @staticmethod
    def _paid(filter: Callable) -> Callable:
        """A filter that pays for what it is given, before it runs, and for what it makes."""
        skip = 1 if hasattr(filter, "jinja_pass_arg") else 0  # the environment or the context, not a value

        @functools.wraps(filter)
        def paid(*args: Any, **kwargs: Any) -> Any:
            pay(TURN)
            given = args[skip:]
            if isinstance(given[0], Iterator):
                given = ([*_counted(given[0])], *given[1:])
            pay_for(*given, *kwargs.values())
            return filter(*args[:skip], *given, **kwargs)

        return paid

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it asks for the attribute {attribute!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    pay(8 * len(sequence) * max(times, 0))
        elif operator == "**":
            if not all(isinstance(x, int | float) and abs(x) < 1000 for x in (left, right)):
                raise SecurityError("it makes a number beyond all bounds")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text by %")
        elif operator == "+" and isinstance(left, str | list | tuple) and hasattr(right, "__len__"):
            pay(8 + len(left) + len(right))
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int):
            pay_for(found)
        return found

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        pay(TURN)
        _check_call(__self, __obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _counted(items: Iterator) -> Iterator:
    for item in items:
        pay(8)
        yield item


def _check_call(environment: _Environment, called: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raises SecurityError for a call that templates have no need of; pays for what a method will make."""
    if isinstance(called, runtime.Macro | runtime.LoopContext | runtime.BlockReference | jinja2.Undefined):
        return
    if called in (environment.tick, environment.concatenate, *environment.globals.values()):
        return
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if isinstance(owner, runtime.LoopContext):
        return
    if name not in METHODS.get(type(owner), ()):
        raise SecurityError(f"it calls {name or type(called).__name__!r}")
    pay_for(owner)
    if name == "replace":
        pay_replaced(owner, *args, *kwargs.values())
    elif name == "join" and args:
        parts = args[0]
        if not isinstance(parts, str | list | tuple):
            raise SecurityError(f"it joins a {type(parts).__name__}")
        pay_joined(owner, list(parts))


def _guarded(environment: _Environment, source: str) -> nodes.Template:
    """The template's tree with a toll at every turn of a loop and every call of a macro."""
    tree = environment.parse(source)

    def call(name: str, args: list[nodes.Expr]) -> nodes.Expr:
        return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)

    def static(node: nodes.Node) -> int:
        return sum(len(data.data) for data in node.find_all(nodes.TemplateData))

    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Block)):
        toll = call("tick", [nodes.Const(static(node))])
        node.body.insert(0, nodes.ExprStmt(toll))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(toll, node.test)
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for field, value in list(parent.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(parent, field, call("concatenate", value.nodes))
            elif isinstance(value, list):
                value[:] = [
                    call("concatenate", one.nodes) if isinstance(one, nodes.Concat) else one for one in value
                ]
    tree.set_environment(environment)
    tree.set_lineno(1)
    return tree


# Whatever a template makes Python raise; a KeyboardInterrupt is none of them.
_FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_BEYOND = (RecursionError, MemoryError, SyntaxError)


class Template:
    """A compiled template. It is compiled on first use, so that the object travels to worker processes."""

    def __init__(self, source: str):
        """Raises TemplateError if it is no template."""
        self.source = source
        if len(source) > SOURCE:
            raise TemplateError(
                f"the chat template has {len(source):,} characters; known ones stay below {SOURCE:,}."
            )
        _ = self._compiled

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        environment = _Environment()
        try:
            with budget(0):  # Jinja computes what is constant when it compiles
                return environment.from_string(_guarded(environment, self.source))
        except (*_FAILURES, *_BEYOND) as error:
            raise TemplateError(f"the chat template is no Jinja that is known here: {_said(error)}") from error

    def render(self, **given: Any) -> str:
        """The text. given: values of plain types alone.

        Raises:
          TemplateError: the template refuses them itself, asks for what it may not have, or for too much.
        """
        try:
            with budget(len(str(given))):
                return self._compiled.render(given)
        except SecurityError as error:
            raise TemplateError(f"the chat template is refused: {_said(error)}") from error
        except (*_FAILURES, *_BEYOND) as error:
            raise TemplateError(f"the chat template cannot write this conversation: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__
