"""What many rules cost: events decided a second against 10,000 rules and against 10.

What an event costs depends on the rules that listen to its type, because each of them is decided and recorded. So twice:
10,000 rules spread over a thousand types, ten each as in the small set; and all 10,000 for one type. Each event matches one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from rules.engine import decide
from rules.loader import load
from rules.rule_set import RuleSet
from rules.vocabulary import Contact, Event

FEW: Final = 10
RULES_A_TYPE: Final = 10
RULES_A_FILE: Final = 500
_NOW: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)


def rule_texts(count: int, *, rules_a_type: int) -> dict[str, str]:
    """Return the files of so many rules, so many of which listen to the same type of event."""
    files = {}
    for begin in range(0, count, RULES_A_FILE):
        lines = ["version: 1", "rules:"]
        for number in range(begin, min(begin + RULES_A_FILE, count)):
            lines += [
                f"  - id: rule-{number}",
                f"    when: lead.kind_{number // rules_a_type}",
                f"    if: {{data.campaign: c-{number}, data.score: {{gte: 50}}}}",
                '    then: [{make_call: {agent: aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa, title: "Call {{ contact.name }}"}}]',
            ]
        files[f"rules-{begin}.yaml"] = "\n".join(lines) + "\n"
    return files


def events(count: int, *, rules_a_type: int) -> Iterator[Event]:
    """Return events without end, each of which matches one of so many rules."""
    number = 0
    while True:
        number = (number + 7_919) % count
        yield Event(
            id=f"ev_{number}",
            source="crm",
            type=f"lead.kind_{number // rules_a_type}",
            occurred_at=_NOW,
            received_at=_NOW,
            contact=Contact(name="Ana", phone="+56911112222", country="CL"),
            data={"campaign": f"c-{number}", "score": 70},
        )


def decided_per_second(count: int, *, rules_a_type: int, seconds: float) -> dict[str, Any]:
    """Decide events against so many rules for so long."""
    begin = time.perf_counter()
    rule_set: RuleSet = load(rule_texts(count, rules_a_type=rules_a_type), {})
    load_seconds = time.perf_counter() - begin
    source = events(count, rules_a_type=rules_a_type)
    made = decide(rule_set, next(source), now=_NOW).tasks
    if len(made) != 1:
        raise RuntimeError(f"an event should match one rule of {count} and matched {len(made)}")
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        decide(rule_set, next(source), now=_NOW)
        done += 1
    return {"rules": count, "per_s": done / (time.perf_counter() - begin), "load_s": load_seconds}


def matching(seconds: float, *, many: int) -> dict[str, dict[str, Any]]:
    """Return what few and many rules allow, for one type of event and for many types."""
    return {
        "few": decided_per_second(FEW, rules_a_type=FEW, seconds=seconds),
        "one_type": decided_per_second(many, rules_a_type=many, seconds=seconds),
        "many_types": decided_per_second(many, rules_a_type=RULES_A_TYPE, seconds=seconds),
    }
