"""What templates can do, and how much of it: a closed language over the event, with bounds on work and size.

Rules come from the operator, so this is hygiene, not a border: a slip such as `{{ "-" * 100000000 }}` must cost a message,
not the worker. Jinja2's ImmutableSandboxedEnvironment keeps templates away from Python's insides; here the rest of it is
closed: the statements, filters, tests and text methods listed, arithmetic on small numbers, no repetition of texts, and
the budget of `rules/template_budget.py`. Null is undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError, UndefinedError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, LoopContext, StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import missing

from rules import filters
from rules.filters import TemplateError
from rules.messages import as_json
from rules.template_budget import Bounding, budget_of, charged, counted, paid
from rules.vocabulary import Json

_RANGE_LIMIT: Final = 1_000
_NUMBER_BITS_LIMIT: Final = 256

METHOD_NOT_CALLED: Final = "a text method is used without (): write upper() or the filter, | upper"

#: What may be called on a text.
TEXT_METHODS: Final = frozenset(
    {"capitalize", "endswith", "lower", "lstrip", "rsplit", "rstrip", "split", "startswith", "strip", "title", "upper"}
)
_LOOP_NAMES: Final = frozenset(
    {"first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0"}
)
_PLAIN_FILTERS: Final = tuple(
    """
    abs capitalize count first float int items last length list lower map max min reject rejectattr reverse select
    selectattr sort string title trim truncate unique upper urlencode wordcount
    """.split()  # noqa: SIM905 - one name a line would be thirty lines
)
_PLAIN_TESTS: Final = tuple(
    """
    != < <= == > >= boolean divisibleby eq equalto even false float ge greaterthan gt in integer iterable le lessthan
    lower lt mapping ne number odd sequence string true upper
    """.split()  # noqa: SIM905 - likewise
)

#: The statements and expressions there are; everything else in a template is a fault when it is read.
ALLOWED_NODES: Final[tuple[type[nodes.Node], ...]] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.Name,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.Concat,
    nodes.BinExpr,
    nodes.UnaryExpr,
)


class MissingNameError(UndefinedError):
    """Raised by the use of a missing value; its message is the last part of the name."""


class MissingValue(StrictUndefined):
    """What is absent or null: a step further is missing too, `default` replaces it, any other use raises its name."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[TemplateRuntimeError] = MissingNameError,
    ) -> None:
        super().__init__(hint, obj, name, UndefinedError if hint else exc)

    def __getattr__(self, name: str) -> MissingValue:
        """Return what lies below: missing too, under the longer name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: object) -> MissingValue:  # type: ignore[override]  # the base always raises
        """Return what lies below: missing too, under the longer name."""
        if self._undefined_hint or isinstance(key, slice):
            return self
        return MissingValue(name=f"{self._undefined_name}.{key}")

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or str(self._undefined_name)


def _small_range(*args: int) -> range:
    """The numbers from the first to before the second, in steps of the third; at most 1,000 of them."""
    if not args or any(type(number) is not int for number in args):
        raise TemplateError("range takes whole numbers, such as range(3) or range(1, 4)")
    numbers = range(*args)
    if len(numbers) > _RANGE_LIMIT:
        raise TemplateError(f"range: {_RANGE_LIMIT:,} numbers are allowed")
    return numbers


def _is_missing(value: Json) -> bool:
    return value is None or isinstance(value, Undefined)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The one environment all templates are compiled in; it is never changed after it was made."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=MissingValue, autoescape=False, optimized=False, finalize=_finalized)
        self.globals = {"range": _small_range}
        own = {**{name: JINJA_FILTERS[name] for name in _PLAIN_FILTERS}, **filters.REPLACED, **filters.DOCUMENTED}
        self.filters = {
            **{name: paid(name, made) for name, made in own.items()},
            "default": filters.default,  # looks at no part of the value
            "_concatenated": paid("~", filters.concatenated),
            "_charged": charged,
            "_counted": counted,
        }
        self.tests = {
            **{name: paid(name, cast("Callable[..., Any]", JINJA_TESTS[name])) for name in _PLAIN_TESTS},
            "defined": lambda value: not _is_missing(value),
            "undefined": _is_missing,
            "none": _is_missing,
        }

    def bounded(self, template: nodes.Template) -> nodes.Template:
        """Return a parsed template with the counting put in, ready to be compiled."""
        counted = Bounding().visit(template)
        counted.set_environment(self)
        assert isinstance(counted, nodes.Template)
        return counted

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a field of a mapping, or one of the text methods there are; nothing else has attributes."""
        if isinstance(obj, MissingValue):
            return obj[attribute]
        if isinstance(obj, str):
            if attribute in TEXT_METHODS:
                return getattr(obj, attribute)
            return self._no_attribute(attribute, TEXT_METHODS, "a text")
        if isinstance(obj, LoopContext):
            if attribute in _LOOP_NAMES:
                return getattr(obj, attribute)
            return self._no_attribute(attribute, _LOOP_NAMES, "loop")
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item of a mapping, a list or a text; what is absent or null is missing."""
        if isinstance(obj, MissingValue):
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
        return MissingValue(name=str(argument)) if found is None else found

    @staticmethod
    def _no_attribute(name: str, allowed: Iterable[str], of_what: str) -> MissingValue:
        return MissingValue(hint=f"{name}: {of_what} has only {', '.join(sorted(allowed))}", name=name)

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call `range` or a text method, which pays for the text as often as for its arguments."""
        for own in ("_loop_vars", "_block_vars"):  # what Jinja2 adds for macros
            named.pop(own, None)
        if obj is _small_range:
            return _small_range(*args, *named.values())
        text = getattr(obj, "__self__", None)
        if isinstance(obj, Undefined) or not isinstance(text, str):
            shown = "" if isinstance(obj, LoopContext) else as_json(obj, 80)
            raise TemplateError(f"{shown or 'loop'} is followed by (), but only a text method or range can be")
        return paid(f"{obj.__name__}()", lambda _, *given, **more: obj(*given, **more))(context, text, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, within bounds: on numbers only, none over 256 bits; `+` also joins two texts or two lists."""
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)  # raises with its name
        complaint = None
        if operator == "+" and (isinstance(left, str | list) or isinstance(right, str | list)):
            if type(left) is type(right):
                budget_of(context).spend(len(left) + len(right))
                return left + right
            complaint = "to join texts, write ~ instead of +"
        elif not _is_number(left) or not _is_number(right):
            complaint = "both must be numbers"
        elif _too_large(operator, left, right):
            complaint = "the numbers are too large"
        try:
            if complaint is None:
                return super().call_binop(context, operator, left, right)
        except ZeroDivisionError:
            complaint = "nothing can be divided by zero; test for it with if"
        except OverflowError:
            complaint = "the numbers are too large"
        raise TemplateError(f"{as_json(left, 80)} {operator} {as_json(right, 80)}: {complaint}")


def _too_large(operator: str, left: float, right: float) -> bool:
    if not isinstance(left, int) or not isinstance(right, int):
        return False
    bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    return bits > _NUMBER_BITS_LIMIT


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pass_context
def _finalized(context: Context, value: Json) -> Json:
    """Return a value as it is written into a text; a null is missing like everything absent."""
    if isinstance(value, str):
        return value
    if value is None:
        raise TemplateError("a null stands where a text is made: give it a default(...)")
    if isinstance(value, dict | list | tuple):
        budget_of(context).charge(value)
    if callable(value) and not isinstance(value, Undefined):
        raise TemplateError(METHOD_NOT_CALLED)
    return filters.in_words(value)


SANDBOX: Final = TemplateSandbox()

#: The filters and tests authors may use, by name.
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    name: made for name, made in SANDBOX.filters.items() if not name.startswith("_")
}
TESTS: Final = tuple(SANDBOX.tests)
