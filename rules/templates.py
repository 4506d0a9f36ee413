"""Whether a template is acceptable, and what it gives for an event.

Jinja2, strict and bounded (see `rules/template_sandbox.py`). A text that is exactly one `{{ expression }}` keeps the type
of its value; any other is a text. A template that cannot be rendered raises TemplateError, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from jinja2 import nodes
from jinja2.environment import Template as JinjaTemplate
from jinja2.exceptions import TemplateSyntaxError, UndefinedError
from jinja2.runtime import Undefined

from rules import paths
from rules.filters import TEXT_LIMIT, ZONE, TemplateError
from rules.messages import nearest
from rules.template_budget import BUDGET, Budget
from rules.template_complaints import about_missing, about_rendering, about_syntax
from rules.template_sandbox import (
    ALLOWED_NODES,
    FILTERS,
    METHOD_NOT_CALLED,
    SANDBOX,
    TESTS,
    TEXT_METHODS,
    MissingNameError,
    MissingValue,
)
from rules.vocabulary import Json, RuleFault
from rules.yaml_reader import Path, SourceMap, written

__all__ = ["ZONE", "Template", "TemplateError", "compile_template", "is_template"]

_LENGTH_LIMIT: Final = 20_000
_LEVEL_LIMIT: Final = 60
_CACHED: Final = 20_000

#: Names a template can use beside the event's.
_BESIDE: Final = frozenset({"loop", "range"})
_GUARDS: Final = frozenset({"defined", "undefined", "none"})


@dataclass(frozen=True, slots=True)
class Template:
    """A text with `{{ }}` or `{% %}` in it, found good; `place` is where it stands (`file:line:column`).

    `beside` are the names it may use beside the event's.
    """

    text: str
    place: str
    beside: tuple[str, ...] = ()

    def render(self, view: Mapping[str, Json]) -> Json:
        """Return what the template gives for an event's view: JSON, and text unless it is exactly one expression.

        The view may name under ZONE the zone in which `date` and `local_time` tell the time. Raises TemplateError, whose
        message names what was missing or wrong.
        """
        known = {name: value for name, value in view.items() if value is not None}
        known[BUDGET] = Budget()
        try:
            return _program(self.text)(known)
        except TemplateError:
            raise
        except MissingNameError as error:
            raise TemplateError(_missing_name(str(error), _reading(self.text, self.beside), view)) from None
        except UndefinedError as error:
            raise TemplateError(about_missing(str(error))) from None
        except Exception as error:
            raise TemplateError(about_rendering(error)) from error

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """The fields it needs though an event may lack them: used without `default` and without `is defined`."""
        return _reading(self.text, self.beside).needed


def is_template(text: str) -> bool:
    """Say whether a text has template marks in it."""
    return "{{" in text or "{%" in text or "{#" in text


def compile_template(text: str, places: SourceMap, path: Path, beside: tuple[str, ...] = ()) -> Template | None:
    """Read a template; complaints go to `places`, with the line inside the text, and the answer then is None.

    `beside` are the names of `paths.BESIDE` that it may use.
    """
    reading = _reading(text, beside)
    place = places.of_value(path)
    for line, message in reading.complaints:
        # Only in a literal block are the lines of the text those of the file; it begins below its `|`.
        below = line if place.literal else 0
        inside = f"line {line} of the text: " if "\n" in text else ""
        places.faults.append(
            RuleFault(
                file=place.file,
                line=place.line + below,
                column=1 if below else place.column,
                path=written(path),
                message=f"template: {inside}{message}",
            )
        )
    return None if reading.complaints else Template(text, str(place), beside)


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """What is known of a template's text without rendering it."""

    complaints: list[tuple[int, str]] = field(default_factory=list)
    #: Every field it names, as steps, by its spelling.
    fields: dict[str, paths.Steps] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


@lru_cache(maxsize=_CACHED)
def _reading(text: str, beside: tuple[str, ...]) -> _Reading:
    reading = _Reading()
    if len(text) > _LENGTH_LIMIT:
        reading.complaints.append((1, f"it has {len(text):,} characters; {_LENGTH_LIMIT:,} are allowed"))
        return reading
    try:
        template = SANDBOX.parse(text)
        deep = _too_deep(template, _LEVEL_LIMIT)
    except TemplateSyntaxError as error:
        reading.complaints.append((error.lineno, about_syntax(error.message or "")))
    except RecursionError:
        reading.complaints.append((1, "nested too deep"))
    except (ValueError, OverflowError):  # Python's own limit on reading numbers
        reading.complaints.append((1, "a number in it has too many digits"))
    else:
        if deep is not None:
            reading.complaints.append((deep, "nested too deep"))
            return reading
        own_names = {name.name for name in template.find_all(nodes.Name) if name.ctx == "store"}
        _Reader(reading, own_names, {name: paths.BESIDE[name] for name in beside}).read(template)
    return reading


def _too_deep(node: nodes.Node, levels: int) -> int | None:
    """Return the line of a node that stands too deep, or None."""
    if not levels:
        return getattr(node, "lineno", 1) or 1
    return next((line for child in node.iter_child_nodes() if (line := _too_deep(child, levels - 1)) is not None), None)


class _Reader:
    """Goes through a parsed template: complains of what is not allowed or not there, and notes the fields."""

    def __init__(self, reading: _Reading, own_names: set[str], beside: paths.Beside) -> None:
        self.reading = reading
        self.own_names = own_names
        self.beside = beside
        self.needed: dict[str, None] = {}
        self.guarded: set[str] = set()

    def read(self, template: nodes.Template) -> None:
        self._visit(template, guarded=False)
        self.reading.needed = tuple(name for name in self.needed if name not in self.guarded)

    def _complain(self, node: nodes.Node, message: str) -> None:
        self.reading.complaints.append((node.lineno or 1, message))

    def _visit(self, node: nodes.Node, *, guarded: bool) -> None:
        if not isinstance(node, ALLOWED_NODES) or (isinstance(node, nodes.For) and node.recursive):
            self._complain(node, f"templates have no {_tag(node)}; there is {{{{ }}}}, if, for and set")
            return
        if isinstance(node, nodes.Pair) and not (isinstance(node.key, nodes.Const) and isinstance(node.key.value, str)):
            self._complain(node, "the names in a mapping are texts in quotes, such as {'name': contact.name}")
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr in TEXT_METHODS:
            self._visit(node.node.node, guarded=guarded)
            for argument in [*node.args, *node.kwargs]:
                self._visit(argument, guarded=False)
            return
        if isinstance(node, nodes.Filter):
            self._known(node, node.name, FILTERS, "filter")
            self._visit_filtered(node, guarded=guarded)
            return
        if isinstance(node, nodes.Test):
            self._known(node, node.name, TESTS, "test")
            guarded = guarded or node.name in _GUARDS
        name = _field(node)
        if name is not None:
            self._name(node, name, guarded=guarded)
            return
        for child in node.iter_child_nodes():
            self._visit(child, guarded=guarded and isinstance(node, nodes.Test))

    def _visit_filtered(self, node: nodes.Filter, *, guarded: bool) -> None:
        for child in node.iter_child_nodes():
            self._visit(child, guarded=guarded or (node.name == "default" and child is node.node))

    def _known(self, node: nodes.Node, name: str, allowed: Mapping[str, object] | tuple[str, ...], kind: str) -> None:
        if name not in allowed:
            near = nearest(name, allowed)
            meant = f"did you mean {near}? " if near else ""
            self._complain(node, f"there is no {kind} {name}; {meant}allowed are {', '.join(sorted(allowed))}")

    def _name(self, node: nodes.Node, steps: paths.Steps, *, guarded: bool) -> None:
        root = str(steps[0])
        if isinstance(node, nodes.Name) and node.ctx == "store":
            if root.startswith("_") or root in _BESIDE or root in paths.ROOTS or root in self.beside:
                self._complain(node, f"{root} cannot be set: choose another name")
            return
        if root in self.own_names or root in _BESIDE:
            return
        spelling = paths.spelled(steps)
        complaint = paths.complain(steps, spelling, self.beside)
        if complaint:
            self._complain(node, complaint)
            return
        self.reading.fields[spelling] = steps
        if guarded:
            self.guarded.add(spelling)
        elif root not in paths.ALWAYS and (root not in self.beside or steps in paths.OPTIONAL_BESIDE):
            self.needed.setdefault(spelling)


def _field(node: nodes.Node) -> paths.Steps | None:
    """Return the steps a chain such as `data.list[0].x` stands for; None when it is not one."""
    steps: list[paths.Step] = []
    while not isinstance(node, nodes.Name):
        if isinstance(node, nodes.Getattr):
            steps.append(node.attr)
        elif (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and type(node.arg.value) in {str, int}
        ):
            steps.append(node.arg.value)
        else:
            return None
        node = node.node
    return (node.name, *reversed(steps))


def _tag(node: nodes.Node) -> str:
    tags = {"AssignBlock": "set blocks", "CallBlock": "call", "FilterBlock": "filter blocks", "For": "recursive loops"}
    name = type(node).__name__
    return tags.get(name, name.lower())


# Rendering -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=_CACHED)
def _program(text: str) -> Callable[[dict[str, Json]], Json]:
    """Compile a text; done at its first rendering, because compiling takes twenty times as long as reading."""
    template = SANDBOX.bounded(SANDBOX.parse(text))
    match template.body:
        case [nodes.Output(nodes=[nodes.Expr() as expression])] if not isinstance(expression, nodes.TemplateData):
            result = nodes.Assign(nodes.Name("result", "store", lineno=1), expression, lineno=1)
            whole = nodes.Template([result], lineno=1)
            whole.set_environment(SANDBOX)
            return _expression(SANDBOX.from_string(whole))
    return _text(SANDBOX.from_string(template))


def _expression(template: JinjaTemplate) -> Callable[[dict[str, Json]], Json]:
    def program(known: dict[str, Json]) -> Json:
        context = template.new_context(known)
        for _ in template.root_render_func(context):
            pass
        result = context.vars["result"]
        known[BUDGET].charge(result)
        return _plain(result)

    return program


def _text(template: JinjaTemplate) -> Callable[[dict[str, Json]], Json]:
    def program(known: dict[str, Json]) -> Json:
        return "".join(_within_limit(template.root_render_func(template.new_context(known))))

    return program


def _within_limit(parts: Iterator[str]) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        if length > TEXT_LIMIT:
            raise TemplateError(f"the text has more than {TEXT_LIMIT:,} characters")
        yield part


def _plain(value: Json) -> Json:
    """Return the value of an expression as JSON; a missing one raises its name."""
    if isinstance(value, Undefined):
        str(value)
    if value is None:
        raise TemplateError("the expression gives null: give it a default(...)")
    return _json(value)


def _json(value: Json) -> Json:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise TemplateError(f"{value} is no number that JSON can hold")
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_json(item) for item in value]
    if isinstance(value, MissingValue):
        str(value)
    if isinstance(value, Undefined):
        raise TemplateError("the if in this expression did not hold and has no else: write {{ a if b else c }}")
    raise TemplateError(
        METHOD_NOT_CALLED if callable(value) else "the expression gives no text, number, list or mapping"
    )


def _missing_name(last: str, reading: _Reading, view: Mapping[str, Json]) -> str:
    """Return the message for a missing value, of which only the last part of the name is known where it was used."""
    for spelling, steps in reading.fields.items():
        dotted = ".".join(str(step) for step in steps)
        found = paths.find(view, steps)
        if (dotted == last or dotted.endswith(f".{last}")) and (found is None or found is paths.MISSING):
            last = spelling
            break
    return f"{last} is missing; where it may be, write {{{{ {last} | default('...') }}}}"
