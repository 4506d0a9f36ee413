"""The sandbox's one page: what it holds, what it refused and why, how it misbehaves, what it assumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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


def page(state: Mapping[str, Json], mindhunters_url: str, vambe_url: str) -> str:
    """Return the page for a state as `/_sandbox/state` gives it. Everything that came from outside is escaped."""
    calls, team = state["mindhunters"]["tasks"], state["vambe"]["tasks"]
    refused, faults, switches = state["refused"], state["faults"], state["switches"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta http-equiv='refresh' content='2'>",
        "<meta name='viewport' content='width=device-width'><title>Leadwire sandbox</title>",
        f"<style>{_STYLE}</style></head><body><h1>Leadwire sandbox</h1>",
        "<p class='lead'>A stand-in for both providers. Nobody is called and nothing is sent. ",
        f"Mindhunters at <code>{escape(mindhunters_url)}</code>, Vambe at <code>{escape(vambe_url)}</code>.</p>",
        _tally(
            ("calls and templates", state["counts"]["mindhunters_tasks"]),
            ("team tasks", state["counts"]["vambe_tasks"]),
            ("requests", state["counts"]["requests"]),
            ("refused", state["counts"]["refused"]),
        ),
        "<h2>Mindhunters: calls and templates</h2>",
        _table(
            ("made (UTC)", "type", "title", "contact", "scheduled (UTC)", "status", "priority", "id"),
            (_mindhunters_row(task) for task in reversed(calls[-SHOWN:])),
            "No task yet. The first one appears here by itself.",
        ),
        "<h2>Vambe: tasks for the team</h2>",
        _table(
            ("made (UTC)", "title", "description", "due (UTC)", "zone", "priority", "assigned", "id"),
            (_vambe_row(task) for task in reversed(team[-SHOWN:])),
            "No task yet. The first one appears here by itself.",
        ),
        "<h2>Refused, and why</h2>",
        _table(
            ("at (UTC)", "provider", "request", "status", "why"),
            (_refused_row(one) for one in reversed(refused[-SHOWN:])),
            "Nothing was refused.",
        ),
        "<h2>Faults in force</h2>",
        _table(
            ("provider", "match", "answer", "times", "acted"),
            (_fault_row(one) for one in faults),
            "None. POST a script to /_sandbox/faults to make the providers misbehave.",
        ),
        _switches(switches),
        "</body></html>",
    ]
    return "".join(parts)


def _tally(*numbers: tuple[str, int]) -> str:
    boxes = "".join(f"<div><b>{number}</b>{escape(name)}</div>" for name, number in numbers)
    return f"<div class='tally'>{boxes}</div>"


def _table(heads: Sequence[str], rows: Iterable[str], none: str) -> str:
    body = "".join(rows)
    if not body:
        return f"<p class='none'>{escape(none)}</p>"
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(*cells: tuple[str, Json], marked: str = "") -> str:
    inner = "".join(f"<td class='{kind}'>{escape(_text(value))}</td>" for kind, value in cells)
    return f"<tr class='{marked}'>{inner}</tr>"


def _text(value: Json) -> str:
    if value is None:
        return "-"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."  # noqa: PLR2004 - a page is for reading


def _time(value: Json) -> str:
    return str(value)[:19].replace("T", " ") if value else "-"


def _mindhunters_row(task: Mapping[str, Json]) -> str:
    contact = task.get("contact") or {}
    ended_badly = task["status"] in {"failed", "expired", "cancelled"}
    return _row(
        ("time", _time(task["created_at"])),
        ("", task["type"]),
        ("text", task["title"]),
        ("time", contact.get("phone_number") or contact.get("email") or task["contact_uuid"]),
        ("time", _time(task["scheduled_at"])),
        ("bad" if ended_badly else "good", task["status"]),
        ("", task["priority"]),
        ("id", task["uuid"][:8]),
    )


def _vambe_row(task: Mapping[str, Json]) -> str:
    due = str(task["due_at"])[:10] if task["due_at"] and task["is_all_day"] else _time(task["due_at"])
    return _row(
        ("time", _time(task["created_at"])),
        ("text", task["title"]),
        ("text", task["description"]),
        ("time", due),
        ("", task["due_timezone"]),
        ("", _PRIORITY_WORDS.get(task["priority"])),
        ("id", " ".join(one["responsible_id"][:8] for one in task["task_responsibles"])),
        ("id", task["id"][:8]),
    )


def _refused_row(one: Mapping[str, Json]) -> str:
    return _row(
        ("time", _time(one["arrived_at"])),
        ("", one["provider"]),
        ("id", f"{one['method']} {one['path']}"),
        ("bad", one["status"]),
        ("text", one["why"]),
    )


def _fault_row(one: Mapping[str, Json]) -> str:
    times = one.get("times", 1)
    return _row(
        ("", one.get("provider", "any")),
        ("id", json.dumps(one["match"]) if one.get("match") else "every request"),
        ("id", json.dumps(one["answer"])),
        ("", "always" if times is None else times),
        ("", one["acted"]),
    )


def _switches(switches: Sequence[Mapping[str, str]]) -> str:
    rows = (
        _row(
            ("id", one["name"]),
            ("id", one["value"]),
            ("id", one["choices"]),
            ("", one["basis"]),
            ("text", one["about"]),
            marked="turned" if one["value"] != one["default"] else "",
        )
        for one in switches
    )
    table = _table(("switch", "stands at", "takes", "basis", "what it decides"), rows, "")
    turned = sum(one["value"] != one["default"] for one in switches)
    return (
        f"<h2>What the documents leave open</h2><details{' open' if turned else ''}><summary>{len(switches)} switches, "
        f"{turned} turned. Behaviour without a switch is documented.</summary>{table}</details>"
    )
