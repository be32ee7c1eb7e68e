"""Jinja as transformers sets it up for chat templates: a sandbox, a few functions, and {% generation %}."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import Any, NoReturn

from neoxkit.errors import ConfigError

_JINJA = (3, 1, 6)
"""Releases before it let a template out of the sandbox; transformers refuses them too."""

MARKS = "_generation_marks"
"""The variable with the two texts that are put around what {% generation %} holds, if they are wanted."""

_INSTALL = "install neoxkit[data] or neoxkit[serve]"


@cache
def environment() -> Any:
    """Jinja as transformers sets it up for chat templates. Raises ConfigError when it is not installed, or too old."""
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError("chat templates need jinja2, which is not installed", _INSTALL) from error
    release = version("jinja2")
    if tuple(int(number) for number in re.findall(r"\d+", release)[:3]) < _JINJA:
        raise ConfigError(f"jinja2 {release} has holes that a chat template could use", _INSTALL)
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols]
    )
    jinja.filters["tojson"] = _to_json
    jinja.globals["raise_exception"] = _raise_exception
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    jinja.globals["dict"] = _Dictionaries()
    jinja.globals["namespace"] = _namespace()
    return jinja


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


class _Dictionaries:
    """`dict` in a template: it makes dictionaries, and is no class whose attributes lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Python's dict.fromkeys."""
        return dict.fromkeys(*args)


def _namespace() -> type:
    """The class of `namespace` in a template: no name in it begins with "_", as Python's own do."""
    from jinja2.sandbox import SecurityError
    from jinja2.utils import Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot have {name!r}: no name in it begins with _")

    class Plain(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may have a name "self" in it
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                check(name)
            Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            Namespace.__setitem__(self, name, value)

    return Plain


def _generation() -> type:
    """The tag {% generation %} ... {% endgeneration %}, which marks the assistant's words for training."""
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock, ContextReference, Node
    from jinja2.parser import Parser
    from jinja2.runtime import Context

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call, and not the body itself, so that what is set in it ends with it, as in transformers.
            return CallBlock(self.call_method("through", [ContextReference()]), [], [], body).set_lineno(line)

        def through(self, context: Context, caller: Callable[[], str]) -> str:
            marks = context.get(MARKS)
            return f"{marks[0]}{caller()}{marks[1]}" if marks else caller()

    return Generation
