"""The sandbox's page: what it holds, what it refused and why, its faults and its assumptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Final

from rules.vocabulary import Json

#: Rows of each table; the rest is in `/_sandbox/state`.
SHOWN: Final = 100

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #15803d; --bad: #b91c1c; --quiet: #8889; }
@media (prefers-color-scheme: dark) { :root { --good: #4ade80; --bad: #f87171; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p.lead { color: GrayText; margin: .2rem 0 1rem; max-width: 60rem; }
.tally { display: flex; flex-wrap: wrap; gap: .75rem; }
.tally div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; min-width: 8rem; }
.tally b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .4rem .7rem; border-top: 1px solid var(--soft); vertical-align: top; }
thead th { border-top: 0; background: var(--soft); font-weight: 600; white-space: nowrap; }
td.id, code { font: .82rem ui-monospace, monospace; } td.text { min-width: 11rem; max-width: 34rem; }
td.id, td.time { white-space: nowrap; } .good { color: var(--good); } .bad { color: var(--bad); }
p.none { color: GrayText; border: 1px dashed var(--line); border-radius: .5rem; padding: .8rem 1rem; }
tr.turned td { background: #eab30822; } details summary { cursor: pointer; }
"""

_PRIORITY_WORDS: Final = {0: "low", 1: "medium", 2: "high"}
_TEXT_CHARACTERS: Final = 300


def _time(value: Json) -> str:
    return str(value)[:19].replace("T", " ") if value else "-"


def _contact(task: Mapping[str, Json]) -> Json:
    contact = task.get("contact") or {}
    return contact.get("phone_number") or contact.get("email") or task["contact_uuid"]


def _due(task: Mapping[str, Json]) -> str:
    return str(task["due_at"])[:10] if task["due_at"] and task["is_all_day"] else _time(task["due_at"])


#: The columns of a table: heading, style, and what stands there.
_Columns = tuple[tuple[str, str, Callable[[Mapping[str, Json]], Json]], ...]

_MINDHUNTERS: Final[_Columns] = (
    ("made (UTC)", "time", lambda task: _time(task["created_at"])),
    ("type", "", lambda task: task["type"]),
    ("title", "text", lambda task: task["title"]),
    ("contact", "time", _contact),
    ("scheduled (UTC)", "time", lambda task: _time(task["scheduled_at"])),
    ("status", "status", lambda task: task["status"]),
    ("priority", "", lambda task: task["priority"]),
    ("id", "id", lambda task: task["uuid"][:8]),
)
_VAMBE: Final[_Columns] = (
    ("made (UTC)", "time", lambda task: _time(task["created_at"])),
    ("title", "text", lambda task: task["title"]),
    ("description", "text", lambda task: task["description"]),
    ("due (UTC)", "time", _due),
    ("zone", "", lambda task: task["due_timezone"]),
    ("priority", "", lambda task: _PRIORITY_WORDS.get(task["priority"])),
    ("assigned", "id", lambda task: " ".join(one["responsible_id"][:8] for one in task["task_responsibles"])),
    ("id", "id", lambda task: task["id"][:8]),
)
_REFUSED: Final[_Columns] = (
    ("at (UTC)", "time", lambda one: _time(one["arrived_at"])),
    ("provider", "", lambda one: one["provider"]),
    ("request", "id", lambda one: f"{one['method']} {one['path']}"),
    ("status", "bad", lambda one: one["status"]),
    ("why", "text", lambda one: one["why"]),
)
_FAULTS: Final[_Columns] = (
    ("provider", "", lambda one: one.get("provider", "any")),
    ("match", "id", lambda one: json.dumps(one["match"]) if one.get("match") else "every request"),
    ("answer", "id", lambda one: json.dumps(one["answer"])),
    ("times", "", lambda one: "always" if one.get("times", 1) is None else one.get("times", 1)),
    ("acted", "", lambda one: one["acted"]),
)
_SWITCHES: Final[_Columns] = (
    ("switch", "id", lambda one: one["name"]),
    ("stands at", "id", lambda one: one["value"]),
    ("takes", "id", lambda one: one["choices"]),
    ("basis", "", lambda one: one["basis"]),
    ("what it decides", "text", lambda one: one["about"]),
)


def page(state: Mapping[str, Json], mindhunters_url: str, vambe_url: str) -> str:
    """Return the page for a state as `/_sandbox/state` gives it. Everything that came from outside is escaped."""
    counts, switches = state["counts"], state["switches"]
    boxes = {
        "calls and templates": counts["mindhunters_tasks"],
        "team tasks": counts["vambe_tasks"],
        "requests": counts["requests"],
        "refused": counts["refused"],
    }
    none, turned = (
        "No task yet. The first one appears here by itself.",
        sum(one["value"] != one["default"] for one in switches),
    )
    parts = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta http-equiv='refresh' content='2'>",
        "<meta name='viewport' content='width=device-width'><title>Leadwire sandbox</title>",
        f"<style>{_STYLE}</style></head><body><h1>Leadwire sandbox</h1>",
        "<p class='lead'>A stand-in for both providers. Nobody is called and nothing is sent. ",
        f"Mindhunters at <code>{escape(mindhunters_url)}</code>, Vambe at <code>{escape(vambe_url)}</code>.</p>",
        "<div class='tally'>",
        *(f"<div><b>{number}</b>{name}</div>" for name, number in boxes.items()),
        "</div><h2>Mindhunters: calls and templates</h2>",
        _table(_MINDHUNTERS, reversed(state["mindhunters"]["tasks"][-SHOWN:]), none),
        "<h2>Vambe: tasks for the team</h2>",
        _table(_VAMBE, reversed(state["vambe"]["tasks"][-SHOWN:]), none),
        "<h2>Refused, and why</h2>",
        _table(_REFUSED, reversed(state["refused"][-SHOWN:]), "Nothing was refused."),
        "<h2>Faults in force</h2>",
        _table(_FAULTS, state["faults"], "None. POST a script to /_sandbox/faults to make the providers misbehave."),
        f"<h2>What the documents leave open</h2><details{' open' if turned else ''}><summary>{len(switches)} switches, ",
        f"{turned} turned. Behaviour without a switch is documented.</summary>{_table(_SWITCHES, switches, '')}</details>",
        "</body></html>",
    )
    return "".join(parts)


def _table(columns: _Columns, rows: Iterable[Mapping[str, Json]], none: str) -> str:
    body = "".join(_row(columns, row) for row in rows)
    if not body:
        return f"<p class='none'>{escape(none)}</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in columns)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(columns: _Columns, row: Mapping[str, Json]) -> str:
    cells = []
    for _, style, value_of in columns:
        text = "-" if (value := value_of(row)) is None else str(value)
        kind = ("bad" if text in {"failed", "expired", "cancelled"} else "good") if style == "status" else style
        shown = text if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]}..."
        cells.append(f"<td class='{kind}'>{escape(shown)}</td>")
    turned = "turned" if "default" in row and row["value"] != row["default"] else ""
    return f"<tr class='{turned}'>{''.join(cells)}</tr>"
