"""How much a rendering may do, and what each operation pays.

Every operation pays before it works: each filter, test, text method, comparison, slice and output for its operands as if
they were written out (a list that holds one list a thousand times is a thousand lists), each turn of a loop for all that
stands in the loop. So time and memory are bounded by the budget, whatever is combined with whatever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from jinja2 import nodes, pass_context
from jinja2.exceptions import UndefinedError
from jinja2.runtime import Context, Undefined
from jinja2.visitor import NodeTransformer

from rules.filters import TemplateError
from rules.messages import as_json
from rules.vocabulary import Json

#: The name under which a rendering carries its Budget; no template can name it.
BUDGET: Final = "_budget"

_TURNS_LIMIT: Final = 1_000
#: What one rendering may work on in all: items of lists and mappings, and eighths of a text's characters.
_WORK_LIMIT: Final = 200_000
_CHARACTERS_PER_UNIT: Final = 8


class Budget:
    """How much work one rendering may still do."""

    __slots__ = ("turns", "work")

    def __init__(self) -> None:
        self.turns = _TURNS_LIMIT
        self.work = _WORK_LIMIT

    def turn(self, size: int) -> None:
        """Pay for one turn of a loop in which so many things stand."""
        self.turns -= 1
        if self.turns < 0:
            raise TemplateError(f"the loops of this template take more than {_TURNS_LIMIT:,} turns")
        self.spend(size)

    def spend(self, amount: int) -> None:
        """Pay for so many items, or eighths of characters."""
        self.work -= amount
        if self.work < 0:
            raise TemplateError("the values this template works on are too large: use a smaller part of them")

    def charge(self, value: Json) -> int:
        """Pay for going through a value once, down to its last item; return what that costs, at least 1."""
        if isinstance(value, str):
            cost = 1 + len(value) // _CHARACTERS_PER_UNIT
            self.spend(cost)
            return cost
        before = self.work
        self.spend(1)
        if not isinstance(value, list | tuple | dict):
            return 1
        waiting: list[Json] = [value]
        while waiting:
            inside = waiting.pop()
            self.spend(len(inside))
            for item in inside:
                if isinstance(item, str):
                    self.work -= len(item) // _CHARACTERS_PER_UNIT
                elif isinstance(item, list | tuple | dict):
                    waiting.append(item)
            if isinstance(inside, dict):
                waiting.append(list(inside.values()))
        self.spend(0)
        return before - self.work


def budget_of(context: Context) -> Budget:
    """Return the budget of the rendering at hand."""
    budget = context.parent[BUDGET]
    assert isinstance(budget, Budget)
    return budget


@pass_context
def counted(context: Context, value: Json, size: int) -> Iterator[Json]:
    """Yield what a loop goes through; each turn pays for the `size` things that stand in the loop."""
    if isinstance(value, Undefined):
        str(value)  # raises with its name
    if not isinstance(value, list | tuple | dict | str | range):
        raise TemplateError(f"for goes through a list, not through {as_json(value, 80)}")
    budget = budget_of(context)
    for item in value:
        budget.turn(size)
        yield item


@pass_context
def charged(context: Context, value: Json) -> Json:
    """Pay for a value that is about to be compared or cut."""
    budget_of(context).charge(value)
    return value


def paid(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or a test that pays for what it works on, gives lists for generators, and fails in plain words.

    An argument can be looked for at every place of the value, so its size counts that often.
    """
    first = getattr(getattr(made, "jinja_pass_arg", None), "name", "")

    @pass_context
    def paying(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        budget = budget_of(context)
        cost = budget.charge(value)
        if args or named:
            budget.spend(cost * sum(budget.charge(argument) - 1 for argument in (*args, *named.values())))
        before = {"context": (context,), "environment": (context.environment,), "eval_context": (context.eval_ctx,)}
        try:
            result = made(*before.get(first, ()), value, *args, **named)
            return _drawn(budget, result) if isinstance(result, Iterator) else result
        except (TemplateError, UndefinedError):
            raise
        except Exception as error:
            said = ", ".join(as_json(argument, 40) for argument in (*args, *named.values()))
            given = f" with ({said})" if said else ""
            raise TemplateError(f"{name} does not work on {as_json(value, 80)}{given}") from error

    paying.__doc__ = made.__doc__
    return paying


def _drawn(budget: Budget, items: Iterator[Json]) -> list[Json]:
    drawn = []
    for item in items:
        budget.charge(item)
        drawn.append(item)
    return drawn


class Bounding(NodeTransformer):
    """Puts the paying into a parsed template where no filter, test or method does it: comparisons, slices, loops, `~`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        return _internal("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        node.expr = _internal("_charged", node.expr)
        for operand in node.ops:
            operand.expr = _internal("_charged", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _internal("_charged", node.node, folded=False)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's spelling
        size = sum(1 for _ in node.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _internal("_counted", node.iter, nodes.Const(size, lineno=node.lineno))
        return node


def _internal(name: str, node: nodes.Node, *args: nodes.Expr, folded: bool = True) -> nodes.Expr:
    """Return a node put through a filter that authors cannot name; a constant in a comparison need not pay."""
    assert isinstance(node, nodes.Expr)
    if name == "_charged" and folded and isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
