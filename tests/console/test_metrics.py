"""The metrics as Prometheus reads them, and that dashboard, alarms and manual name only what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from console.metrics import FAMILIES, Collector, MetricsSnapshot
from rules.vocabulary import (
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Plan,
    ProviderName,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from worker.ledger import Delivery, IncomingEvent, Settlement, migrate, open_ledger

ROOT = Path(__file__).resolve().parents[2]
#: Labels that Prometheus itself adds.
ADDED = frozenset({"job", "instance"})
WORDS = re.compile(r'"[^"]*"|[A-Za-z_:$][\w:$]*|[^\s\w]')
GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})


def fill(ledger, now) -> None:
    """Let every kind of thing happen once."""
    for number, type_ in enumerate(TaskType):
        event = Event(
            id=f"ev_{number}", source="crm", type="lead.created", occurred_at=now, received_at=now, data={"name": "Ana"}
        )
        delivery = Delivery(id=f"dl_{number}", source="crm", received_at=now, body=b"{}", content_hash=str(number))
        ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=str(number), content_hash="1")])
        task = Task(
            id=f"tk_{number}",
            key=f"key {number}",
            event_id=event.id,
            rule="call-back",
            name="call",
            type=type_,
            provider=ProviderName.MINDHUNTERS,
            due_at=now,
            fields={"title": "Call Ana"},
            rule_set="rs_1",
        )
        decision = Decision(rule="call-back", outcome=DecisionOutcome.MATCHED, reason="Ana", place="a.yaml:1:1")
        plan = Plan(
            event_id=event.id, rule_set="rs_1", state=EventState.PROCESSED, decisions=(decision,), tasks=(task,)
        )
        ledger.tasks.insert([plan], now)
        (claim,) = ledger.tasks.claim([task.id], now, timedelta(seconds=60), "w-1")
        delivered = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x", status=201)
        ledger.tasks.settle(claim, delivered, now + timedelta(seconds=3))
    ledger.limits.pause(ProviderName.VAMBE, now + timedelta(hours=1), "Ana asked for it", now)
    ledger.rule_sets.store("rs_1", {"a.yaml": ""}, now)
    ledger.inbox.count_requests({("crm", "rejected", "mismatch"): 2, ("(unknown)", "unknown", ""): 1})


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> Iterator[MetricsSnapshot]:
    """Return the view of a ledger in which everything has happened."""
    now = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    fill(ledger, now)
    yield MetricsSnapshot(
        measures=ledger.queries.measure(now + timedelta(seconds=60)),
        requests={},
        read_seconds=0.01,
        sources=["crm", "web"],
        queues={"leadwire.events": 3},
        refused=False,
    )
    ledger.close()


@pytest.fixture(scope="module")
def exposed(view) -> str:
    """Return what a scrape gets."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(view))
    return generate_latest(registry).decode()


@pytest.fixture(scope="module")
def series(exposed) -> dict[str, set[str]]:
    """Return the labels of every series by its name, as the scrape has them."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def values(exposed: str, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of one series by its labels' values, in the order of their names."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.name == name
    }


def test_names_follow_the_conventions() -> None:
    """One prefix, base units, `_total` for counters alone; every metric says what it is in a sentence or more."""
    for family in FAMILIES:
        assert re.fullmatch(r"leadwire_[a-z]+(_[a-z]+)*", family.name)
        assert ("counter" == family.kind) == family.name.endswith("_total")
        assert not re.search(r"_(milliseconds|micros|minutes|kilobytes|percent|count|sum|bucket)$", family.name)
        assert family.help[-1] in ".`"
        assert not family.name.endswith("_info") or family.labels
    assert len(FAMILIES) == len({family.name for family in FAMILIES})


def test_a_scrape_can_be_read_back(exposed, series) -> None:
    """Every metric is there with its type, its help and its labels."""
    read = {family.name: family for family in text_string_to_metric_families(exposed)}
    for family in FAMILIES:
        found = read[family.name.removesuffix("_total")]
        assert (family.kind, family.help) == (found.type, found.documentation)
        one = f"{family.name}_count" if family.kind == "histogram" else family.name
        assert set(family.labels) == series[one]
    assert "Ana" not in exposed


def test_failures_are_there_before_they_happen(exposed) -> None:
    """What can be known beforehand is there with 0, so that the first failure is a rise."""
    ended = values(exposed, "leadwire_tasks_ended_total")
    assert len(TaskType) * 5 == len(ended)
    assert (0.0, 1.0) == (ended["dead", "team_task"], ended["delivered", "team_task"])
    requests = values(exposed, "leadwire_webhook_requests_total")
    assert (2.0, 0.0) == (requests["rejected", "mismatch", "crm"], requests["rejected", "mismatch", "web"])
    assert 0.0 == requests["busy", "ledger_busy", "web"]
    assert 0.0 == values(exposed, "leadwire_events")["web", "received"]
    paused = values(exposed, "leadwire_provider_paused")
    assert (8, [("person", "vambe")]) == (len(paused), [labels for labels, value in paused.items() if value])


def test_histograms_add_up(exposed) -> None:
    """Buckets grow up to the count, and the sum is in seconds."""
    name = "leadwire_delivery_after_received_seconds"
    buckets = values(exposed, f"{name}_bucket")
    ends = [end for end, type_ in buckets if type_ == "make_call"]
    in_order = [buckets[end, "make_call"] for end in sorted(ends, key=float)]
    assert ["0.05", "86400.0", "+Inf"] == [*sorted(ends, key=float)[:1], *sorted(ends, key=float)[-2:]]
    assert (0.0, 1.0) == (buckets["2.5", "make_call"], buckets["5.0", "make_call"])
    assert in_order == sorted(in_order)
    assert 1.0 == values(exposed, f"{name}_count")["make_call",] == in_order[-1]
    assert 3.0 == values(exposed, f"{name}_sum")["make_call",]


def test_moments_and_ages_are_seconds(view, exposed) -> None:
    """Ages count from the moment of reading; nothing due is 0."""
    assert (
        view.measures.taken_at.timestamp() + 3540
        == values(exposed, "leadwire_provider_paused_until_timestamp_seconds")["vambe",]
    )
    assert {("events", ""): 0.0, ("tasks", "mindhunters"): 0.0, ("tasks", "vambe"): 0.0} == values(
        exposed, "leadwire_due_oldest_age_seconds"
    )


# What others say of the metrics


def _expressions() -> Iterator[tuple[str, str]]:
    board = json.loads((ROOT / "deploy/grafana/leadwire.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['id']}{target['refId']} {panel['title']}", target["expr"]
    for note in board["annotations"]["list"]:
        yield note["name"], note["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/leadwire-alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def _uses(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """Return the labels that an expression matches for each metric it names, and those that it groups by."""
    metrics: dict[str, set[str]] = {}
    grouped: set[str] = set()
    words = WORDS.findall(expression)
    for place, word in enumerate(words):
        if word.startswith("leadwire_"):
            labels = metrics.setdefault(word, set())
            if words[place + 1 : place + 2] == ["{"]:
                inside = words[place + 2 : words.index("}", place)]
                labels |= {name for name, after in pairwise(inside) if after in "=!"}
        elif word in GROUPING and words[place + 1 : place + 2] == ["("]:
            grouped |= set(words[place + 2 : words.index(")", place)]) - {","}
    return metrics, grouped


@pytest.mark.parametrize("expression", [pytest.param(each, id=name) for name, each in _expressions()])
def test_queries_name_only_what_there_is(expression, series) -> None:
    """Every metric and every label that the dashboard or an alarm names is in the scrape of a ledger in use."""
    metrics, grouped = _uses(expression)

    assert metrics
    assert set(metrics) <= set(series)
    for name, labels in metrics.items():
        assert labels <= series[name] | ADDED
    assert grouped <= set().union(*(series[name] for name in metrics)) | ADDED
    for text in re.findall(r'(?:state|outcome)=~?"([^"]*)"', expression):
        assert set(text.split("|")) <= {*TaskState, *EventState, *DecisionOutcome, "rejected", "busy", "oversized"}


def test_several_ingresses_are_never_added_up() -> None:
    """A sum of metrics goes over the largest of each: every ingress answers with the numbers of all."""
    for name, expression in _expressions():
        for inside in re.findall(r"sum(?: by \([^)]*\))?\s*\((\w+)", expression):
            assert inside == "max", name


def test_the_dashboard_can_be_imported() -> None:
    """It has the final classic schema, chooses its data source and job, and no two panels lie on one another."""
    board = json.loads((ROOT / "deploy/grafana/leadwire.json").read_text())

    assert 42 == board["schemaVersion"]
    assert [("datasource", "datasource"), ("job", "query")] == [
        (one["name"], one["type"]) for one in board["templating"]["list"]
    ]
    assert {"${datasource}"} == {panel["datasource"]["uid"] for panel in board["panels"] if panel["type"] != "row"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


def test_labels_shown_are_those_of_the_query() -> None:
    """A legend names only labels that its query keeps."""
    board = json.loads((ROOT / "deploy/grafana/leadwire.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            outer = re.match(r"(?:topk\(\d+, |histogram_quantile\([\d.]+, )?\w+(?: by \(([^)]*)\))?", target["expr"])
            assert outer
            kept = set((outer[1] or "").split(", "))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_alarms_are_complete() -> None:
    """Every alarm says how urgent it is, what it is about and what to do."""
    document = yaml.safe_load((ROOT / "deploy/prometheus/leadwire-alerts.yaml").read_text())
    alerts = [rule for group in document["groups"] for rule in group["rules"]]

    assert {"severity"} == set().union(*(rule["labels"] for rule in alerts))
    assert {"page", "ticket"} == {rule["labels"]["severity"] for rule in alerts}
    for rule in alerts:
        assert re.fullmatch(r"Leadwire[A-Z]\w+", rule["alert"])
        assert {"summary", "description"} == set(rule["annotations"])
        kept = set(re.findall(r"by \(([^)]*)\)", rule["expr"])[0].split(", ")) if " by (" in rule["expr"] else set()
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert shown <= kept, rule["alert"]


def test_the_manual_lists_every_metric() -> None:
    """The table of docs/metrics.md is that of the code: names, types, labels, and what they say."""
    manual = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    after = manual.split("## What there is", 1)[1].split("\n## ", 1)[0]
    shown = [line for line in after.splitlines() if line.startswith("| `")]

    assert [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{each}`' for each in one.labels) or 'none'} | {one.help} |"
        for one in FAMILIES
    ] == shown


def test_the_manual_names_only_what_there_is(series) -> None:
    """Every metric, and every file, that the manual names in passing exists."""
    manual = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(leadwire_\w+)`", manual)) - {family.name for family in FAMILIES}
    assert named <= set(series)
    for path in re.findall(r"`((?:deploy|docs)/[\w./-]+)`", manual):
        assert (ROOT / path).exists(), path
