"""The demo: all of it once as a process, and what it says when something is not as promised."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from console.demo.scenario import DemoResult, webhooks
from console.samples import Posted
from rules.vocabulary import (
    Contact,
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    FailedTest,
    ProviderName,
    RetryPolicy,
    Subject,
    TaskState,
    TaskType,
)
from worker.ledger import StoredEvent, StoredTask

COMMAND = (sys.executable, "-m", "console.cli", "demo")
NOW = datetime(2026, 3, 2, 13, tzinfo=UTC)
PLACE = "leads.yaml:1:1"


@pytest.fixture
def environment(tmp_path):
    """Return an environment in which the demo's folder is in sight and settings of the user are set, all wrong."""
    return {**os.environ, "TMPDIR": str(tmp_path), "LEADWIRE_PORT": "many", "LEADWIRE_RULES": "/nowhere"}


def test_the_demo_keeps_its_promises_and_leaves_nothing(tmp_path, environment):
    """The whole line runs on this machine: exit 0, every promise kept, no folder and no process left."""
    ran = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert 0 == ran.returncode, ran.stdout + ran.stderr
    assert "All as expected: 6 promised tasks" in ran.stdout
    assert "data.value: wanted gt 10000," in ran.stdout
    assert all(len(line) <= 110 for line in ran.stdout.splitlines())
    assert [] == list(tmp_path.iterdir())
    assert [] == _processes_of(tmp_path)


def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path, environment):
    """SIGTERM in the middle stops everything and removes the folder."""
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        give_up_at = time.monotonic() + 60
        while not list(tmp_path.glob("*/home/broker")) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert b"Traceback" not in err
    assert [] == list(tmp_path.iterdir())
    assert [] == _processes_of(tmp_path)


def test_an_outcome_as_promised_has_no_shortcomings():
    """What was promised, held once each, with the rest explained, is well."""
    assert [] == list(_result().shortcomings())


def test_a_task_that_is_held_twice_is_a_shortcoming():
    """Two of a task at its provider: the demo fails and names it."""
    good = _result()
    doubled = dataclasses.replace(good, at_vambe=(*good.at_vambe, good.at_vambe[0]))

    assert any("hold 2 of" in one for one in doubled.shortcomings())


def test_a_task_that_is_not_held_is_a_shortcoming():
    """A promised task that the provider does not hold is named, though the ledger calls it delivered."""
    assert any("hold 0 of" in one for one in dataclasses.replace(_result(), at_mindhunters=()).shortcomings())


def test_a_rejected_webhook_is_a_shortcoming():
    """An answer that is no 2xx is named with its status."""
    good = _result()
    answers = ((Posted(status=401, text="rejected"),), *good.answers[1:])

    assert any("answered with 401" in one for one in dataclasses.replace(good, answers=answers).shortcomings())


def test_an_unexplained_lead_is_a_shortcoming():
    """A lead that was left alone without the failing test on record is named."""
    good = _result()
    mute = tuple(dataclasses.replace(event, decisions=()) for event in good.events)

    assert any(
        "left it alone because of data.value" in one for one in dataclasses.replace(good, events=mute).shortcomings()
    )


def test_an_event_too_many_is_a_shortcoming():
    """A redelivery that was recorded as one more event is named."""
    good = _result()
    extra = dataclasses.replace(
        good.events[0], event=dataclasses.replace(good.events[0].event, id="ev_x", subject=Subject(kind="lead", id="x"))
    )

    more = dataclasses.replace(good, events=(*good.events, extra))
    assert ["7 events are in the ledger, not 6"] == list(more.shortcomings())


def _processes_of(folder):
    """Return the command lines of processes that name the folder, where the system shows them."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(place.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


def _result():
    posted = webhooks()
    events, tasks, mindhunters, vambe = [], [], [], []
    for webhook in posted:
        for expected in webhook.events:
            event_id = f"ev_{expected.subject_id}"
            events.append(_event(event_id, webhook, expected))
            for wanted in expected.tasks:
                task = _task(event_id, wanted)
                tasks.append(task)
                held = {"title": wanted.title, "description": f"Text [lw:{task.key[:12]}]"}
                if task.provider is ProviderName.MINDHUNTERS:
                    mindhunters.append({**held, "uuid": task.external_id})
                else:
                    vambe.append({**held, "id": task.external_id})
    return DemoResult(
        webhooks=posted,
        answers=tuple((Posted(status=200, text=""),) * (2 if webhook.redelivered else 1) for webhook in posted),
        events=tuple(events),
        tasks=tuple(tasks),
        at_mindhunters=tuple(mindhunters),
        at_vambe=tuple(vambe),
        refused=(),
    )


def _event(event_id, webhook, expected):
    decisions = ()
    if expected.failing_test:
        rule, path = expected.failing_test
        failed = FailedTest(path=path, operator="gt", wanted=10000, seen=900, missing=False, place=PLACE)
        decisions = (
            Decision(rule=rule, outcome=DecisionOutcome.NOT_MATCHED, reason="too small", failed=failed, place=PLACE),
        )
    return StoredEvent(
        event=Event(
            id=event_id,
            source=webhook.source,
            type=expected.type,
            occurred_at=NOW,
            received_at=NOW,
            subject=Subject(kind="lead", id=expected.subject_id),
        ),
        delivery_id=None,
        dedupe_key=event_id,
        content_hash="",
        state=EventState.PROCESSED,
        reason=None,
        tries=0,
        due_at=NOW,
        dispatches=1,
        dispatched_at=NOW,
        rule_set="rs_1",
        decisions=decisions,
    )


def _task(event_id, wanted):
    key = f"{event_id}{wanted.rule}".encode().hex()
    provider = ProviderName.VAMBE if wanted.type is TaskType.TEAM_TASK else ProviderName.MINDHUNTERS
    return StoredTask(
        id=f"tk_{key[:20]}",
        key=hashlib.sha256(f"{event_id}/{wanted.rule}".encode()).hexdigest(),
        event_id=event_id,
        rule=wanted.rule,
        name=str(wanted.type),
        type=wanted.type,
        provider=provider,
        fields={},
        due_at=NOW,
        expires_at=None,
        retry=RetryPolicy(),
        if_unsure="ask",
        contact=Contact(),
        state=TaskState.DELIVERED,
        reason=None,
        note=None,
        rule_set="rs_1",
        attempts=1,
        epoch=1,
        first_attempt_at=NOW,
        lease_until_at=None,
        owner=None,
        dispatched_at=None,
        external_id=f"x-{key}",
        created_at=NOW,
        updated_at=NOW,
    )
