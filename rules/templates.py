"""What a template may say, and what it gives for an event.

Jinja2's immutable sandbox, with a closed list of statements, filters, tests and text methods. Null is undefined, and what is
undefined ends the rendering with its name unless `default` replaces it. A text that is exactly one `{{ expression }}` keeps
the type of its value; any other gives a text. A template that cannot be rendered raises TemplateError, and nothing else.

Rules are the operator's own, what they are rendered with comes from outside. So the bounds are on data: on the size of the
fields that a template names, on the turns of its loops, on the numbers it calculates with and on the text it makes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, cast

from jinja2 import nodes, pass_context
from jinja2.environment import Template as JinjaTemplate
from jinja2.exceptions import TemplateRuntimeError, TemplateSyntaxError, UndefinedError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, LoopContext, StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer

from rules import filters, paths
from rules.filters import TEXT_LIMIT, TemplateError
from rules.messages import as_json, nearest
from rules.vocabulary import Json, RuleFault
from rules.yaml_reader import Path, SourceMap, written

#: Characters of one template, and nodes inside nodes when it is parsed.
TEMPLATE_LIMIT_CHARACTERS: Final = 20_000
_LEVEL_LIMIT: Final = 60
_CACHED: Final = 20_000
#: What the fields of a template may hold together: items of lists and mappings, and every 64 characters of a text.
_SIZE_LIMIT: Final = 10_000
_CHARACTERS_PER_UNIT: Final = 64
_TURNS_LIMIT: Final = 1_000
_ARGUMENT_LIMIT_CHARACTERS: Final = 1_000
_NUMBER_BITS_LIMIT: Final = 256
#: The name under which a rendering carries what is left of its turns; no template can name it.
_TURNS: Final = "_turns"
_TOO_LARGE: Final = "the values this template works on are too large: use a smaller part of them"
_METHOD_NOT_CALLED: Final = "a text method is used without (): write upper() or the filter, | upper"

#: The statements and expressions there are; everything else in a template is a fault when it is read.
_STATEMENTS: Final = "Template Output TemplateData If For Assign"
_EXPRESSIONS: Final = (
    "Name Const List Tuple Dict Pair Keyword Getattr Getitem Slice Filter Test Call CondExpr Compare Operand Concat "
    "BinExpr UnaryExpr"
)
_ALLOWED_NODES: Final = tuple(getattr(nodes, name) for name in f"{_STATEMENTS} {_EXPRESSIONS}".split())
_TEXT_METHODS: Final = frozenset(
    "capitalize endswith lower lstrip rsplit rstrip split startswith strip title upper".split()  # noqa: SIM905 - names
)
_LOOP_NAMES: Final = frozenset("first index index0 last length nextitem previtem revindex revindex0".split())  # noqa: SIM905 - names
_JINJA_FILTERS: Final = (
    "abs capitalize count first float int items last length list lower map max min reject rejectattr reverse select "
    "selectattr sort string title trim truncate unique upper urlencode wordcount"
)
_JINJA_TESTS: Final = (
    "!= < <= == > >= boolean divisibleby eq equalto even false float ge greaterthan gt in integer iterable le lessthan "
    "lower lt mapping ne number odd sequence string true upper"
)
#: Names that a template can use beside the event's, and tests that ask whether a field is there.
_OWN_NAMES: Final = frozenset({"loop", "range"})
_GUARDS: Final = frozenset({"defined", "undefined", "none"})


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template: text with `{{ }}` or `{% %}`; `place` is its position (`file:line:column`)."""

    text: str
    place: str
    _parsed: _Parsed = field(repr=False, compare=False)

    def render(self, view: Mapping[str, Json]) -> Json:
        """Render it for an event's view: a JSON value when the template is exactly one expression, otherwise text.

        The view may hold, under `filters.ZONE`, the time zone that `date` and `local_time` use. Raises TemplateError, whose
        message names what is missing or wrong.
        """
        found = self._parsed.simple(view)
        return self._render_by_jinja(view) if found is None else found

    def _render_by_jinja(self, view: Mapping[str, Json]) -> Json:
        known = {name: value for name, value in view.items() if value is not None}
        known[_TURNS] = iter(range(_TURNS_LIMIT))
        try:
            _refuse_large(*(paths.find(view, steps) for steps in self._parsed.fields.values()))
            return _program(self.text)(known)
        except TemplateError:
            raise
        except _MissingNameError as error:
            raise TemplateError(_about_missing_name(str(error), self._parsed.fields, view)) from None
        except UndefinedError as error:
            empty = "an item is taken from a list or a text that is empty: add | default('...')"
            raise TemplateError(empty if "sequence was empty" in str(error) else str(error)) from None
        except Exception as error:
            raise TemplateError(_about_rendering(error)) from error

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """The fields it requires though an event may lack them: used without `default` and without `is defined`."""
        return self._parsed.needed


def is_template(text: str) -> bool:
    """Return whether a text contains template marks."""
    return "{{" in text or "{%" in text or "{#" in text


def compile_template(text: str, places: SourceMap, path: Path, beside: tuple[str, ...] = ()) -> Template | None:
    """Compile a template. Faults are added to `places`, with the line inside the text; the result is then None.

    `beside` are the names of `paths.FOLLOW_UP_ROOTS` that it may use.
    """
    parsed = _parse(text, beside)
    place = places.of_value(path)
    for line, message in parsed.faults:
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
    return None if parsed.faults else Template(text, str(place), parsed)


# Reading -------------------------------------------------------------------------------------------------------------


def _never_simple(_: Mapping[str, Json]) -> Json:
    """Return None: only Jinja2 can render this template."""


@dataclass(slots=True)
class _Parsed:
    """What is known of a template's text without rendering it.

    `faults` are lines and messages, `fields` all fields it names, by their spelling. `simple` renders without Jinja2, in a
    twentieth of the time, what nearly all templates are: texts and fields that are there; it returns None for all else.
    """

    faults: list[tuple[int, str]] = field(default_factory=list)
    fields: dict[str, paths.Steps] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    simple: Callable[[Mapping[str, Json]], Json] = _never_simple


@lru_cache(maxsize=_CACHED)
def _parse(text: str, beside: tuple[str, ...]) -> _Parsed:
    parsed = _Parsed()
    if len(text) > TEMPLATE_LIMIT_CHARACTERS:
        parsed.faults.append((1, f"it has {len(text):,} characters; {TEMPLATE_LIMIT_CHARACTERS:,} are allowed"))
        return parsed
    try:
        template = _SANDBOX.parse(text)
        deep = _too_deep(template, _LEVEL_LIMIT)
    except TemplateSyntaxError as error:
        parsed.faults.append((error.lineno, about_syntax(error.message or "")))
    except RecursionError:
        parsed.faults.append((1, "nested too deep"))
    except (ValueError, OverflowError):  # Python's own limit on reading numbers
        parsed.faults.append((1, "a number in it has too many digits"))
    else:
        if deep is not None:
            parsed.faults.append((deep, "nested too deep"))
            return parsed
        own_names = {name.name for name in template.find_all(nodes.Name) if name.ctx == "store"}
        _Checker(parsed, own_names, {name: paths.FOLLOW_UP_ROOTS[name] for name in beside}).check(template)
        parsed.simple = _simple(template)
    return parsed


def _too_deep(node: nodes.Node, levels: int) -> int | None:
    """Return the line of a node that stands too deep, or None."""
    if not levels:
        return getattr(node, "lineno", 1) or 1
    return next((line for child in node.iter_child_nodes() if (line := _too_deep(child, levels - 1)) is not None), None)


class _Checker:
    """Goes through a parsed template: notes the fields, and finds what is not allowed and what no event can have."""

    def __init__(self, parsed: _Parsed, own_names: set[str], beside: paths.ExtraRoots) -> None:
        self._parsed = parsed
        self._own_names = own_names | _OWN_NAMES
        self._beside = beside
        self._needed: dict[str, None] = {}
        self._guarded: set[str] = set()

    def check(self, template: nodes.Template) -> None:
        self._visit(template, guarded=False)
        self._parsed.needed = tuple(name for name in self._needed if name not in self._guarded)

    def _fault(self, node: nodes.Node, message: str) -> None:
        self._parsed.faults.append((node.lineno or 1, message))

    def _visit(self, node: nodes.Node, *, guarded: bool) -> None:
        if not isinstance(node, _ALLOWED_NODES) or (isinstance(node, nodes.For) and node.recursive):
            self._fault(node, f"templates have no {_tag(node)}; there is {{{{ }}}}, if, for and set")
            return
        if isinstance(node, nodes.Pair) and not (isinstance(node.key, nodes.Const) and isinstance(node.key.value, str)):
            self._fault(node, "the names in a mapping are texts in quotes, such as {'name': contact.name}")
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr in _TEXT_METHODS:
            self._visit(node.node.node, guarded=guarded)
            for argument in [*node.args, *node.kwargs]:
                self._visit(argument, guarded=False)
            return
        if isinstance(node, nodes.Filter):
            self._known(node, node.name, FILTERS, "filter")
            for child in node.iter_child_nodes():
                self._visit(child, guarded=guarded or (node.name == "default" and child is node.node))
            return
        if isinstance(node, nodes.Test):
            self._known(node, node.name, _SANDBOX.tests, "test")
            guarded = guarded or node.name in _GUARDS
        name = _field(node)
        if name is not None:
            self._name(node, name, guarded=guarded)
            return
        for child in node.iter_child_nodes():
            self._visit(child, guarded=guarded and isinstance(node, nodes.Test))

    def _known(self, node: nodes.Node, name: str, allowed: Iterable[str], kind: str) -> None:
        if name not in allowed:
            near = nearest(name, allowed)
            meant = f"did you mean {near}? " if near else ""
            self._fault(node, f"there is no {kind} {name}; {meant}allowed are {', '.join(sorted(allowed))}")

    def _name(self, node: nodes.Node, steps: paths.Steps, *, guarded: bool) -> None:
        root = str(steps[0])
        if isinstance(node, nodes.Name) and node.ctx == "store":
            if root.startswith("_") or root in _OWN_NAMES or root in paths.ROOTS or root in self._beside:
                self._fault(node, f"{root} cannot be set: choose another name")
            return
        if root in self._own_names:
            return
        spelling = paths.spelled(steps)
        complaint = paths.problem_with(steps, spelling, self._beside)
        if complaint:
            self._fault(node, complaint)
            return
        self._parsed.fields[spelling] = steps
        if guarded:
            self._guarded.add(spelling)
        elif root not in paths.ALWAYS and (root not in self._beside or steps in paths.OPTIONAL_FOLLOW_UP_FIELDS):
            self._needed.setdefault(spelling)


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


# Rendering without Jinja2 --------------------------------------------------------------------------------------------


def _simple(template: nodes.Template) -> Callable[[Mapping[str, Json]], Json]:
    """Return how a template of texts and fields (with a text as `default`, perhaps) is rendered while they are there."""
    outputs = [part for node in template.body for part in (node.nodes if isinstance(node, nodes.Output) else [node])]
    looks = [_constant(part.data) if isinstance(part, nodes.TemplateData) else _look_up(part) for part in outputs]
    parts = [look for look in looks if look is not None]
    if len(parts) < len(outputs):
        return _never_simple
    if len(parts) == 1 and not isinstance(outputs[0], nodes.TemplateData):
        look = parts[0]
        return lambda view: found if type(found := look(view)) in _SCALARS else None

    def text(view: Mapping[str, Json]) -> str | None:
        values = [part(view) for part in parts]
        if any(type(value) is not str and not (type(value) is int and abs(value) < _INT_LIMIT) for value in values):
            return None
        whole = "".join(map(str, values))
        return whole if len(whole) <= TEXT_LIMIT else None

    return text


_SCALARS: Final = frozenset({str, int, bool})
#: Longer numbers are left to Jinja2's way, where Python's limit on writing them becomes a message.
_INT_LIMIT: Final = 10**18


def _constant(value: Json) -> Callable[[Mapping[str, Json]], Json]:
    return lambda _: value


def _look_up(node: nodes.Node | None) -> Callable[[Mapping[str, Json]], Json] | None:
    match node:
        case nodes.Filter(name="default", node=inner, args=[nodes.Const(value=fallback)], kwargs=[]):
            look = None if isinstance(inner, nodes.Filter) else _look_up(inner)
            return look and (lambda view: fallback if (found := look(view)) is None else found)
        case nodes.Name() | nodes.Getattr() | nodes.Getitem():
            steps = _field(node)
            return None if steps is None or steps[0] in _OWN_NAMES else paths.getter(steps)
    return None


# Rendering with Jinja2 -----------------------------------------------------------------------------------------------


class _MissingNameError(UndefinedError):
    """Raised by the use of a missing value; its message is the last part of the name."""


class _MissingValue(StrictUndefined):
    """What is absent or null: a step further is missing too, `default` replaces it, any other use raises its name."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[TemplateRuntimeError] = _MissingNameError,
    ) -> None:
        super().__init__(hint, obj, name, UndefinedError if hint else exc)

    def __getattr__(self, name: str) -> _MissingValue:
        """Return what lies below: missing too, under the longer name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: object) -> _MissingValue:  # type: ignore[override]  # the base always raises
        """Return what lies below: missing too, under the longer name."""
        if self._undefined_hint or isinstance(key, slice):
            return self
        return _MissingValue(name=f"{self._undefined_name}.{key}")

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or str(self._undefined_name)


def _refuse_large(*values: Json) -> None:
    """Raise TemplateError when the values hold more than the limit together, counted down to their last item."""
    left, waiting = _SIZE_LIMIT, list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            left -= len(value) // _CHARACTERS_PER_UNIT
        elif isinstance(value, list | tuple | dict):
            left -= len(value)
            waiting.extend(value.values() if isinstance(value, dict) else value)
        if left < 0:
            raise TemplateError(_TOO_LARGE)


def _small_range(*args: int) -> range:
    """The numbers from the first to before the second, in steps of the third; at most 1,000 of them."""
    if not args or any(type(number) is not int for number in args):
        raise TemplateError("range takes whole numbers, such as range(3) or range(1, 4)")
    numbers = range(*args)
    if len(numbers) > _TURNS_LIMIT:
        raise TemplateError(f"range: {_TURNS_LIMIT:,} numbers are allowed")
    return numbers


def _is_missing(value: Json) -> bool:
    return value is None or isinstance(value, Undefined)


def _explained(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter, test or method that gives lists for generators, and fails in plain words."""
    first = getattr(getattr(made, "jinja_pass_arg", None), "name", "")

    @pass_context
    def explained(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        before = {"context": (context,), "environment": (context.environment,), "eval_context": (context.eval_ctx,)}
        _refuse_large(value, *args, *named.values())
        try:
            result = made(*before.get(first, ()), value, *args, **named)
            return list(result) if isinstance(result, Iterator) else result
        except (TemplateError, UndefinedError):
            raise
        except Exception as error:
            said = ", ".join(as_json(argument, 40) for argument in (*args, *named.values()))
            given = f" with ({said})" if said else ""
            raise TemplateError(f"{name} does not work on {as_json(value, 80)}{given}") from error

    explained.__doc__ = made.__doc__
    return explained


class _Sandbox(ImmutableSandboxedEnvironment):
    """The one environment all templates are compiled in; it is never changed after it was made."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=_MissingValue, autoescape=False, optimized=False, finalize=_finalized)
        self.globals = {"range": _small_range}
        jinja = {name: JINJA_FILTERS[name] for name in _JINJA_FILTERS.split()}
        own = {**jinja, **filters.REPLACED, **filters.DOCUMENTED}
        self.filters = {
            **{name: _explained(name, made) for name, made in own.items()},
            "default": filters.default,  # looks at no part of the value
            "_concatenated": _explained("~", filters.concatenated),
            "_counted": _counted,
        }
        self.tests = {
            **{name: _explained(name, cast("Callable[..., Any]", JINJA_TESTS[name])) for name in _JINJA_TESTS.split()},
            "defined": lambda value: not _is_missing(value),
            "undefined": _is_missing,
            "none": _is_missing,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a field of a mapping, or one of the text methods there are; nothing else has attributes."""
        if isinstance(obj, str):
            if attribute in _TEXT_METHODS:
                return getattr(obj, attribute)
            return _no_attribute(attribute, _TEXT_METHODS, "a text")
        if isinstance(obj, LoopContext):
            if attribute in _LOOP_NAMES:
                return getattr(obj, attribute)
            return _no_attribute(attribute, _LOOP_NAMES, "loop")
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item of a mapping, a list or a text; what is absent or null is missing."""
        if isinstance(obj, _MissingValue):
            return obj[argument]
        if isinstance(argument, Undefined):
            str(argument)  # raises with its name
        if not isinstance(argument, str | int):
            raise TemplateError(f"[{as_json(argument, 40)}]: write the name of a field or the number of an item")
        found = None
        if isinstance(obj, dict):
            found = obj.get(str(argument))
        elif isinstance(obj, list | tuple | str) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            found = obj[argument]
        return _MissingValue(name=str(argument)) if found is None else found

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call `range` or a text method."""
        for own in ("_loop_vars", "_block_vars"):  # what Jinja2 adds for macros
            named.pop(own, None)
        if obj is _small_range:
            return _small_range(*args, *named.values())
        text = getattr(obj, "__self__", None)
        if isinstance(obj, Undefined) or not isinstance(text, str):
            shown = "" if isinstance(obj, LoopContext) else as_json(obj, 80)
            raise TemplateError(f"{shown or 'loop'} is followed by (), but only a text method or range can be")
        # `strip` looks for every character in all of its argument.
        if any(isinstance(argument, str) and len(argument) > _ARGUMENT_LIMIT_CHARACTERS for argument in args):
            raise TemplateError(_TOO_LARGE)
        return _explained(f"{obj.__name__}()", lambda _, *given, **more: obj(*given, **more))(
            context, text, *args, **named
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, within bounds: on numbers only, none over 256 bits; `+` also joins two texts or two lists."""
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)  # raises with its name
        complaint = None
        if operator == "+" and (isinstance(left, str | list) or isinstance(right, str | list)):
            if type(left) is type(right):
                joined = left + right
                _refuse_large(joined)
                return joined
            complaint = "to join texts, write ~ instead of +"
        elif not _is_number(left) or not _is_number(right):
            complaint = "both must be numbers"
        elif _too_long(operator, left, right):
            complaint = "the numbers are too large"
        try:
            if complaint is None:
                return super().call_binop(context, operator, left, right)
        except ZeroDivisionError:
            complaint = "nothing can be divided by zero; test for it with if"
        except OverflowError:
            complaint = "the numbers are too large"
        raise TemplateError(f"{as_json(left, 80)} {operator} {as_json(right, 80)}: {complaint}")


def _no_attribute(name: str, allowed: Iterable[str], of_what: str) -> _MissingValue:
    return _MissingValue(hint=f"{name}: {of_what} has only {', '.join(sorted(allowed))}", name=name)


def _too_long(operator: str, left: float, right: float) -> bool:
    if not isinstance(left, int) or not isinstance(right, int):
        return False
    bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    return bits > _NUMBER_BITS_LIMIT


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pass_context
def _counted(context: Context, value: Json) -> Iterator[Json]:
    """Yield what a loop goes through, while there are turns left for the loops of this rendering."""
    if isinstance(value, Undefined):
        str(value)  # raises with its name
    if not isinstance(value, list | tuple | dict | str | range):
        raise TemplateError(f"for goes through a list, not through {as_json(value, 80)}")
    for item in value:
        if next(context.parent[_TURNS], None) is None:
            raise TemplateError(f"the loops of this template take more than {_TURNS_LIMIT:,} turns")
        yield item


def _finalized(value: Json) -> Json:
    """Return a value as it is written into a text; a null is missing like everything absent."""
    if isinstance(value, str):
        return value
    if value is None:
        raise TemplateError("a null stands where a text is made: give it a default(...)")
    if callable(value) and not isinstance(value, Undefined):
        raise TemplateError(_METHOD_NOT_CALLED)
    _refuse_large(value)
    return filters.in_words(value)


class _Rewriting(NodeTransformer):
    """Puts `_counted` into loops and `_concatenated` into `~`: Jinja2 has no other way to change what these do."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@lru_cache(maxsize=_CACHED)
def _program(text: str) -> Callable[[dict[str, Json]], Json]:
    """Compile a text; done at its first rendering, because compiling takes twenty times as long as parsing."""
    template = _Rewriting().visit(_SANDBOX.parse(text))
    match template.body:
        case [nodes.Output(nodes=[nodes.Expr() as expression])] if not isinstance(expression, nodes.TemplateData):
            result = nodes.Assign(nodes.Name("result", "store", lineno=1), expression, lineno=1)
            return _value_program(_compiled(nodes.Template([result], lineno=1)))
    return _text_program(_compiled(template))


def _compiled(template: nodes.Template) -> JinjaTemplate:
    template.set_environment(_SANDBOX)
    return _SANDBOX.from_string(template)


def _value_program(template: JinjaTemplate) -> Callable[[dict[str, Json]], Json]:
    def program(known: dict[str, Json]) -> Json:
        context = template.new_context(known)
        for _ in template.root_render_func(context):
            pass
        result = context.vars["result"]
        _refuse_large(result)
        if result is None:
            raise TemplateError("the expression gives null: give it a default(...)")
        return _as_plain_json(result)

    return program


def _text_program(template: JinjaTemplate) -> Callable[[dict[str, Json]], Json]:
    def program(known: dict[str, Json]) -> Json:
        made, length = [], 0
        for part in template.root_render_func(template.new_context(known)):
            length += len(part)
            if length > TEXT_LIMIT:
                raise TemplateError(f"the text has more than {TEXT_LIMIT:,} characters")
            made.append(part)
        return "".join(made)

    return program


def _as_plain_json(value: Json) -> Json:
    """Return the value of an expression as JSON; a missing one raises its name."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise TemplateError(f"{value} is no number that JSON can hold")
    if isinstance(value, dict):
        return {str(key): _as_plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_as_plain_json(item) for item in value]
    if isinstance(value, _MissingValue):
        str(value)  # raises with its name
    if isinstance(value, Undefined):
        raise TemplateError("the if in this expression did not hold and has no else: write {{ a if b else c }}")
    raise TemplateError(
        _METHOD_NOT_CALLED if callable(value) else "the expression gives no text, number, list or mapping"
    )


_SANDBOX: Final = _Sandbox()
#: The filters authors may use, by name.
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    name: made for name, made in _SANDBOX.filters.items() if not name.startswith("_")
}


# Messages ------------------------------------------------------------------------------------------------------------

#: How Jinja2 names its tokens -> what stands in the text.
_TOKENS: Final = {
    "end of print statement": "}}",
    "end of statement block": "%}",
    "begin of print statement": "{{",
    "begin of statement block": "{%",
}
_SEEN: Final = {"string": "a text", "integer": "a number", "float": "a number", "end of template": "the end"}
_WANTED: Final = {"name": "a name", "string": "a text", "integer": "a number", "in": "the word in"}
_ENDS: Final = {"if": "endif", "for": "endfor"}
_WHAT_THERE_IS: Final = "there is {% if %}, {% for %} and {% set x = ... %}"
_KINDS: Final = {
    "str": "a text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "range": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def about_syntax(message: str) -> str:
    """Return a message for a template that Jinja2 could not parse, made from Jinja2's message.

    Jinja2 names its own tokens ("expected token 'end of print statement'"); where a message is unknown here, an example is
    given instead.
    """
    for pattern, told in _SYNTAX:
        found = re.match(pattern, message, re.DOTALL)
        if found:
            return told if isinstance(told, str) else told(*(_TOKENS.get(word, word) for word in found.groups("")))
    return "it cannot be read here; compare with {{ contact.name }} and {% if data.x %}...{% endif %}"


def _unclosed(tag: str) -> str:
    if tag == "set":
        return "set needs a value: write {% set x = data.value %}"
    return f"{{% {tag} %}} is not closed: write {{% {_ENDS.get(tag, f'end{tag}')} %}} where it ends"


def _unknown_tag(tag: str, opened: str) -> str:
    closing = tag.startswith("end") or tag in {"else", "elif"}
    if opened and closing:
        end = _ENDS.get(opened, f"end{opened}")
        return f"{{% {tag} %}} stands where {{% {end} %}} must come first: {{% {opened} %}} is still open"
    if closing:
        opener = tag.removeprefix("end") if tag.startswith("end") else "if"
        return f"{{% {tag} %}} belongs to nothing: the {{% {opener} %}} before it is missing"
    return f"templates have no {tag}; {_WHAT_THERE_IS}"


def _ends_early(wanted: str) -> str:
    if wanted == "}}":
        return "{{ is not closed: write }} after the expression"
    if wanted == "%}":
        return "{% is not closed: write %} after the statement"
    return f"the text ends where {wanted} must follow: something is not closed"


def _expected(wanted: str, got: str) -> str:
    if got == "=":
        return "= means nothing here: to compare, write =="
    seen = _SEEN.get(got, got)
    if wanted in {"}}", "%}"}:
        return f"{seen} stands where {wanted} must follow: is an operator, a comma, a quote or a bracket missing?"
    return f"{seen} stands where {_WANTED.get(wanted, wanted)} must follow"


def _no_expression(got: str) -> str:
    if got == "}}":
        return "an expression is missing before }}: write one such as {{ contact.name }}"
    if got == "%}":
        return "an expression is missing before %}: write one such as {% if data.value > 10 %}"
    return f"an expression is missing before {_SEEN.get(got, got)}"


def _stray(character: str) -> str:
    character = "'" if character == "\\'" else character
    if character in {"'", '"'}:
        return f"a text is opened with {character} and not closed"
    meant = {"&": "; write and", "!": "; write not", "?": "; write a if b else c"}.get(character, "")
    return f"the character {character} means nothing here{meant}"


def _unexpected(got: str, partner: str) -> str:
    if partner:
        return f"a bracket is opened and not closed: {partner} must come before {got}"
    if got == "}":
        return "one } closes nothing here: {{ ends with }} and {% ends with %}"
    if got in {")", "]"}:
        return f"{got} closes a bracket that was never opened"
    return f"a value is missing before {_SEEN.get(got, got)}"


_SYNTAX: Final[tuple[tuple[str, str | Callable[..., str]], ...]] = (
    (r"Unexpected end of template.*needs to be closed is '(\w+)'", _unclosed),
    (r"Encountered unknown tag '([^']*)'(?:.*The innermost block that needs to be closed is '(\w+)')?", _unknown_tag),
    (r"unexpected end of template, expected '(.*)'", _ends_early),
    (r"expected token '(.*)', got '(.*)'", _expected),
    (r"Expected an expression, got '(.*)'", _no_expression),
    (r"unexpected char ['\"](.*)['\"] at", _stray),
    (r"unexpected '(.+?)'(?:, expected '(.+)')?$", _unexpected),
    (r"Missing end of comment tag", "{# is not closed: write #} after the comment"),
    (r"Missing end of raw directive", "templates have no raw; a text without marks needs none"),
    (r"tag name expected", f"a word is missing after {{%; {_WHAT_THERE_IS}"),
    (r"can't assign to", "this cannot be set: write a new name, as in {% set x = data.value %}"),
    (r"expected name or number", "a name is missing after the point"),
    (r"invalid syntax for function call", "an argument without a name stands behind one with a name"),
    (r"You cannot chain multiple tests", "a test stands behind a test: join them with and"),
    (r"Invalid character in identifier", "a name has a character that no name can have"),
)


def _about_missing_name(last: str, fields: Mapping[str, paths.Steps], view: Mapping[str, Json]) -> str:
    """Return the message for a missing value, of which only the last part of the name is known where it was used."""
    for spelling, steps in fields.items():
        dotted = ".".join(str(step) for step in steps)
        found = paths.find(view, steps)
        if (dotted == last or dotted.endswith(f".{last}")) and (found is None or found is paths.MISSING):
            last = spelling
            break
    return f"{last} is missing; where it may be, write {{{{ {last} | default('...') }}}}"


def _about_rendering(error: Exception) -> str:
    """Return why a template could not be rendered, from an error that nothing else has explained."""
    if isinstance(error, RecursionError | MemoryError):
        return "the values this template works on are nested too deep or too large"
    kinds = [_KINDS[name] for name in re.findall(r"'(\w+)'", str(error)) if name in _KINDS]
    compared = re.match(r"'(<|>|<=|>=)' not supported", str(error))
    if compared and len(kinds) == 2:  # noqa: PLR2004 - the two sides
        return f"{kinds[0]} {compared[1]} {kinds[1]}: only values of one kind have an order; | int makes a number"
    if isinstance(error, TypeError) and kinds:
        return (
            f"this does not work with {' and '.join(dict.fromkeys(kinds))}: what is written suits another kind of value"
        )
    return "its values cannot be worked with as it is written: look at the filters, loops and sums in it"
