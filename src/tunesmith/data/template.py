"""A model's chat template, run in a sandbox with limits.

In: template source and special tokens of a model folder (nobody here wrote them), messages as plain values.
Out: the rendered text, or an InputRefused that says what the template said. The environment equals that of
transformers' `apply_chat_template` (trimmed blocks, loop controls, `generation`, `tojson`, `raise_exception`), but for
the clock: `strftime_now` does not exist, so that equal rows give equal tokens on every day. Templates that ask
`strftime_now is defined` use their own fixed date; those that call it unasked are refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from tunesmith.errors import InputRefused

MAX_OUTPUT_CHARACTERS = 64 * 1024 * 1024
MAX_REPEATED_CHARACTERS = 1024 * 1024
MAX_SECONDS = 20.0
GROWING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class TemplateRefusesError(Exception):
    """The template raised: its own message (`raise_exception`) or jinja's, without the row it was about."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for transformers; here placement finds it, so the tag only passes on."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Transformers' sandbox, and no operation that makes a huge text from a small one."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.exceptions.SecurityError("a chat template may not use **")
        if operator == "%" and isinstance(left, str):
            raise jinja2.exceptions.SecurityError("a chat template may not format text with %")
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    size = len(text) * times  # pyright: ignore[reportUnknownArgumentType]
                    if size > MAX_REPEATED_CHARACTERS:
                        raise jinja2.exceptions.SecurityError(f"a chat template repeats a text to {size:,} characters")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Namespace(jinja2.utils.Namespace):
    """Namespaces without underscore names: those are the way out of a sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        values = dict(*given, **kwargs)
        for name in values:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r} on a namespace")


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


class ChatTemplate:
    """One compiled template. `render` is a pure function of its arguments; nothing from outside reaches the template.

    to_json: called by the `tojson` filter in place of json.dumps; the renderer finds tool arguments by it.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.to_json: Callable[..., str] = plain_json
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], cache_size=0
        )
        untyped = cast("Any", environment)
        filters: dict[str, Any] = untyped.filters
        names: dict[str, Any] = untyped.globals
        filters["tojson"] = self._to_json
        names |= {"raise_exception": _raise_exception, "dict": _Dict(), "namespace": _Namespace}
        del names["lipsum"]  # random text of any length
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError, OverflowError, MemoryError) as error:
            raise InputRefused(
                "TEMPLATE_UNREADABLE",
                f"The model's chat template does not compile: {error}.",
                field="render",
                hint="Mend the model's template, or choose --render plain.",
            ) from error
        # One dict of all names, not `Template.generate`: its merge of globals takes longer than the rendering.
        self._names: dict[str, Any] = {**names, **special_tokens}

    def _to_json(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return self.to_json(value, *args, **kwargs)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of a conversation. Raises TemplateRefusesError with the template's reason."""
        deadline = time.monotonic() + MAX_SECONDS
        names = self._names | {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(self._template.new_context(names, shared=True)):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise TemplateRefusesError(f"its text is longer than {MAX_OUTPUT_CHARACTERS:,} characters")
                if len(pieces) % 256 == 0 and time.monotonic() > deadline:
                    raise TemplateRefusesError(f"it runs longer than {MAX_SECONDS:.0f} s")
        except TemplateRefusesError:
            raise
        except jinja2.exceptions.UndefinedError as error:
            reason = "it reads the clock (strftime_now)" if "strftime_now" in str(error) else str(error)
            raise TemplateRefusesError(reason) from error
        except Exception as error:
            raise TemplateRefusesError(str(error) or type(error).__name__) from error
        return "".join(pieces)


def plain_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' `tojson`: json.dumps without the HTML escapes of jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
