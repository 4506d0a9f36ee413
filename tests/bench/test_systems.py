"""That what is compared does the work it is measured by."""

import json
from datetime import UTC, datetime

from bench.events import ID, SECRET, SIGNATURE_HEADER, body, signature
from bench.measure import Plan, measure
from bench.rule_matching import matching
from bench.systems import RULES, Leadwire, Naive
from ingress import sources
from ingress.sources import Rejected, WebhookRequest
from rules.engine import decide
from rules.loader import load
from rules.vocabulary import TaskState, TaskType

ENVIRONMENT = {"BENCH_SECRET": SECRET.decode()}
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
TINY = Plan(seconds=0.3, connections=4, rates=((20, 0.5),), warm_seconds=0.1, rest_seconds=0)


def test_the_source_believes_the_signature_and_the_rule_makes_a_call():
    """An event of the bench is verified, read, and leads to one call with the event's id in its title; a forged one does not."""
    rule_set = load({"bench.yaml": RULES}, ENVIRONMENT)
    built, faults = sources.build(rule_set.sources, ENVIRONMENT, public_url=None)
    assert () == tuple(faults)
    content = body("0a1b2c", 7)
    headers = {SIGNATURE_HEADER.lower(): signature(content), "content-type": "application/json"}
    received = WebhookRequest(method="POST", path="/webhooks/crm", headers=headers, body=content)
    assert not isinstance(built["crm"].verify(received, NOW), Rejected)
    forged = WebhookRequest(method="POST", path="/webhooks/crm", headers=headers, body=content + b" ")
    assert isinstance(built["crm"].verify(forged, NOW), Rejected)
    (found,) = built["crm"].read(received, NOW, lambda: "ev_1")
    (task,) = decide(rule_set, found.event, now=NOW).tasks
    assert (TaskType.MAKE_CALL, TaskState.PLANNED) == (task.type, task.state)
    assert [b"evt-0a1b2c-000007"] == ID.findall(json.dumps(dict(task.fields)).encode())


def test_leadwire_is_measured_to_the_end(tmp_path):
    """A tiny load: everything accepted is on disk, delivered and at the sink once, and every figure is there."""
    found = measure(Leadwire(), TINY, tmp_path / "run")
    counted = {name: found[name] for name in ("refused", "lost", "doubled", "not_recorded", "not_delivered")}
    assert dict.fromkeys(counted, 0) == counted
    assert found["accepted"] >= found["events"] > 0
    assert {"ingress", "worker", "broker", "flower", "supervisor"} <= set(found["memory_by_role"])
    assert all(found[name] > 0 for name in ("ingest_per_s", "e2e_per_s", "cpu_ms", "memory_mb", "flower_mb", "cold_s"))
    assert all(found["at_20"][name] > 0 for name in ("ack_p50_ms", "ack_p99_ms", "e2e_p50_ms", "e2e_p99_ms"))
    assert not (tmp_path / "run").exists()


def test_the_script_is_measured_to_the_end(tmp_path):
    """The afternoon's script under the same load: all of it arrives, and it keeps nothing to compare with."""
    found = measure(Naive(), TINY, tmp_path / "run")
    assert (0, 0, 0) == (found["refused"], found["lost"], found["doubled"])
    assert found["not_recorded"] is None
    assert {"ingress", "worker", "broker"} == set(found["memory_by_role"])


def test_many_rules_are_matched():
    """An event matches one rule of many, whether they listen to one type or to many."""
    found = matching(0.05, many=100)
    assert {"few": 10, "one_type": 100, "many_types": 100} == {name: one["rules"] for name, one in found.items()}
