"""What templates can do, and how much of it: a closed language over the event, with bounds on work and size.

Rules come from the operator, so this is hygiene, not a border: a slip such as `{{ "-" * 100000000 }}` must cost a message,
not the worker. Jinja2's ImmutableSandboxedEnvironment keeps templates away from Python's insides; here the rest of it is
closed: the statements, filters, tests and text methods listed, arithmetic on small numbers, no repetition of texts, and a
budget of steps for every rendering. Null is undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError, UndefinedError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, LoopContext, StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer

from rules import filters
from rules.filters import TemplateError
from rules.showing import as_json
from rules.vocabulary import Json

#: The name under which a rendering carries its Budget; no template can name it.
BUDGET: Final = "_budget"

STEPS_LIMIT: Final = 10_000
_WORK_LIMIT: Final = 5_000_000
_RANGE_LIMIT: Final = 1_000
_NUMBER_BITS_LIMIT: Final = 256

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


class Budget:
    """How much work one rendering may still do."""

    __slots__ = ("steps", "work")

    def __init__(self) -> None:
        self.steps = STEPS_LIMIT
        self.work = _WORK_LIMIT

    def step(self) -> None:
        """Count one turn of a loop."""
        self.steps -= 1
        if self.steps < 0:
            raise TemplateError(f"the loops of this template take more than {STEPS_LIMIT:,} turns")

    def spend(self, amount: int) -> None:
        """Count characters or items that are worked on."""
        self.work -= amount
        if self.work < 0:
            raise TemplateError(f"this template works on more than {_WORK_LIMIT:,} characters or items")


@pass_context
def _counted(context: Context, value: Json) -> Iterator[Json]:
    """Yield what a loop goes through, counting its turns."""
    budget: Budget = context[BUDGET]
    for item in value:
        budget.step()
        yield item


@pass_context
def _charged(context: Context, value: Json) -> Json:
    """Charge what a filter is about to work on."""
    if isinstance(value, str | list | dict | tuple):
        context[BUDGET].spend(len(value))
    return value


def _small_range(*args: int) -> range:
    """The numbers from the first to before the second, in steps of the third; at most 1,000 of them."""
    numbers = range(*args)
    if len(numbers) > _RANGE_LIMIT:
        raise TemplateError(f"range: {_RANGE_LIMIT:,} numbers are allowed")
    return numbers


def _is_missing(value: Json) -> bool:
    return value is None or isinstance(value, Undefined)


class _Bounding(NodeTransformer):
    """Puts the counting into a parsed template: before every filter, around every loop, in place of `~`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concatenated", [], [], None, None, lineno=node.lineno)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        node.node = nodes.Filter(node.node, "_charged", [], [], None, None, lineno=node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The one environment all templates are compiled in; it is never changed after it was made."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=MissingValue, autoescape=False, optimized=False, finalize=_finalized)
        self.globals = {"range": _small_range}
        self.filters = {
            **{name: JINJA_FILTERS[name] for name in _PLAIN_FILTERS},
            **filters.REPLACED,
            **filters.DOCUMENTED,
            "_concatenated": filters.concatenated,
            "_charged": _charged,
            "_counted": _counted,
        }
        self.tests = {
            **{name: JINJA_TESTS[name] for name in _PLAIN_TESTS},
            "defined": lambda value: not _is_missing(value),
            "undefined": _is_missing,
            "none": _is_missing,
        }

    def bounded(self, template: nodes.Template) -> nodes.Template:
        """Return a parsed template with the counting put in, ready to be compiled."""
        counted = _Bounding().visit(template)
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
        found = None
        if isinstance(obj, dict):
            found = obj.get(argument) if isinstance(argument, str) else obj.get(str(argument))
        elif isinstance(obj, list | tuple | str) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            found = obj[argument]
        return MissingValue(name=str(argument)) if found is None else found

    @staticmethod
    def _no_attribute(name: str, allowed: Iterable[str], of_what: str) -> MissingValue:
        return MissingValue(hint=f"{name}: {of_what} has only {', '.join(sorted(allowed))}", name=name)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, within bounds: `*`, `**` and `%` on numbers only, and no number over 256 bits."""
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)  # raises with its name
        if operator == "+":
            return self._sum(context, left, right)
        if not _is_number(left) or not _is_number(right):
            raise TemplateError(f"{as_json(left, 80)} {operator} {as_json(right, 80)}: both must be numbers")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _NUMBER_BITS_LIMIT:
                raise TemplateError(f"{as_json(left, 80)} {operator} {as_json(right, 80)}: the numbers are too large")
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def _sum(context: Context, left: Any, right: Any) -> Any:
        if isinstance(left, str | list) or isinstance(right, str | list):
            if type(left) is not type(right):
                raise TemplateError(f"{as_json(left, 80)} + {as_json(right, 80)}: to join texts, write ~ instead of +")
            context[BUDGET].spend(len(left) + len(right))
        return left + right


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finalized(value: Json) -> Json:
    """Return a value as it is written into a text; a null is missing like everything absent."""
    if isinstance(value, str):
        return value
    if value is None:
        raise TemplateError("a null stands where a text is made: give it a default(...)")
    if callable(value) and not isinstance(value, Undefined):
        raise TemplateError("a text method is used without (): write upper() or the filter, | upper")
    return filters.in_words(value)


SANDBOX: Final = TemplateSandbox()

#: The filters and tests authors may use, by name.
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    name: made for name, made in SANDBOX.filters.items() if not name.startswith("_")
}
TESTS: Final = tuple(SANDBOX.tests)
