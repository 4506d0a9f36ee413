"""The one table: medians over the rounds, each with its least and greatest, and Leadwire's ratio to the script.

A ratio is the median of the ratios within one round, because only what ran side by side can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

Result = Mapping[str, Any]

#: (what the row is called, where its value is in a result, whether more is better)
ROWS: Final[tuple[tuple[str, tuple[str, ...], bool], ...]] = (
    ("ingest, events/s", ("ingest_per_s",), True),
    ("end to end, events/s", ("e2e_per_s",), True),
    ("CPU ms per event, Flower included", ("cpu_ms",), False),
    ("2xx p50 under full load, ms", ("flood_p50_ms",), False),
    ("2xx p99 under full load, ms", ("flood_p99_ms",), False),
    ("2xx p50 at 10/s, ms", ("at_10", "ack_p50_ms"), False),
    ("2xx p99 at 10/s, ms", ("at_10", "ack_p99_ms"), False),
    ("at the provider p50 at 10/s, ms", ("at_10", "e2e_p50_ms"), False),
    ("at the provider p99 at 10/s, ms", ("at_10", "e2e_p99_ms"), False),
    ("2xx p50 at 50/s, ms", ("at_50", "ack_p50_ms"), False),
    ("2xx p99 at 50/s, ms", ("at_50", "ack_p99_ms"), False),
    ("at the provider p50 at 50/s, ms", ("at_50", "e2e_p50_ms"), False),
    ("at the provider p99 at 50/s, ms", ("at_50", "e2e_p99_ms"), False),
    ("memory at rest without Flower, PSS MiB", ("memory_mb",), False),
    ("Flower's memory at rest, PSS MiB", ("flower_mb",), False),
    ("cold start to the first task, s", ("cold_s",), False),
)
#: Sums over the rounds: they must be nought, or say how much was asked.
COUNTS: Final = (
    ("events answered with 2xx", "accepted"),
    ("of them not on disk", "not_recorded"),
    ("of them not on disk as delivered", "not_delivered"),
    ("of them not at the provider: lost", "lost"),
    ("at the provider more than once", "doubled"),
    ("refused or not answered", "refused"),
)
_ROLES: Final = ("ingress", "worker", "broker", "flower", "supervisor", "generator", "sink")
#: From here on a figure is shown without decimals.
_WHOLE_FROM: Final = 100
_ONE_DECIMAL_FROM: Final = 10


def table(results: Sequence[Result], systems: Sequence[str], base: str) -> str:
    """Return the table in Markdown; ratios are to `base`, if it was measured."""
    compared = [name for name in systems if name != base] if base in systems else []
    head = ["", *systems, *(f"{name} / {base}" for name in compared), "better"]
    lines = [_line(head), _line(["---"] * len(head))]
    for title, path, more_is_better in ROWS:
        cells = [_spread(_values(results, name, path)) for name in systems]
        ratios = [_ratio(results, name, base, path) for name in compared]
        if any(cell != "-" for cell in cells):
            lines.append(_line([title, *cells, *ratios, "more" if more_is_better else "less"]))
    for title, key in COUNTS:
        sums = [_total(results, name, key) for name in systems]
        lines.append(_line([title, *sums, *([""] * len(compared)), ""]))
    busy = [_spread(_values(results, name, ("others_percent",))) for name in systems]
    lines.append(_line(["CPU used by others meanwhile, %", *busy, *([""] * len(compared)), ""]))
    return "\n".join(lines)


def by_role(results: Sequence[Result], name: str) -> list[str]:
    """Say how much CPU each kind of process used per event, and how much memory each held at rest."""
    cpu = _shares(results, name, "cpu_ms_by_role", 2)
    memory = _shares(results, name, "memory_by_role", 0)
    return [f"CPU ms per event, {name}: {cpu}", f"PSS MiB at rest, {name}: {memory}"]


def _shares(results: Sequence[Result], name: str, key: str, decimals: int) -> str:
    found = ((role, _values(results, name, (key, role))) for role in _ROLES)
    return ", ".join(f"{role} {median(values):.{decimals}f}" for role, values in found if values)


def _values(results: Sequence[Result], name: str, path: Sequence[str]) -> list[float]:
    found = (_value(result, path) for result in results if result["system"] == name)
    return [value for value in found if value is not None]


def _value(result: Result, path: Sequence[str]) -> float | None:
    value: Any = result
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _ratio(results: Sequence[Result], name: str, base: str, path: Sequence[str]) -> str:
    ratios = []
    for result in results:
        if result["system"] == name:
            others = [one for one in results if one["system"] == base and one["round"] == result["round"]]
            value, beside = _value(result, path), _value(others[0], path) if others else None
            if value is not None and beside:
                ratios.append(value / beside)
    if not ratios:
        return "-"
    spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"**{median(ratios):.2f}x**{spread}"


def _spread(values: Sequence[float]) -> str:
    if not values or not any(values):
        return "-"
    if len(values) == 1:
        return _figure(values[0])
    return f"{_figure(median(values))} ({_figure(min(values))}-{_figure(max(values))})"


def _figure(value: float) -> str:
    if value >= _WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= _ONE_DECIMAL_FROM else f"{value:.2f}"


def _total(results: Sequence[Result], name: str, key: str) -> str:
    counts = [result[key] for result in results if result["system"] == name]
    return "-" if None in counts else f"{sum(counts):,}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
