"""A signed webhook becomes a call, a WhatsApp template and a team task: once, or never when it must not."""

import json
import uuid

import httpx
import pytest

from rules.vocabulary import TaskState
from tests.flow.houses import every_house

pytestmark = every_house


def titles(line, name):
    """Return the titles of the sandbox's tasks that end in this contact's name, with their provider."""
    return sorted(
        (provider, task["title"])
        for provider in ("mindhunters", "vambe")
        for task in line.sandbox.tasks(provider)
        if task["title"].endswith(name)
    )


def test_a_big_lead_becomes_three_tasks(line):
    """One signed webhook leads to exactly the three tasks its rule promises, at the right providers."""
    name = uuid.uuid4().hex
    assert line.post(line.event(name=name)).is_success
    expected = [("mindhunters", f"Call {name}"), ("mindhunters", f"Welcome {name}"), ("vambe", f"Follow up {name}")]
    assert line.until(lambda: titles(line, name) == expected), titles(line, name)
    delivered = line.until(
        lambda: [t for t in line.tasks() if t.contact.name == name and t.state is TaskState.DELIVERED and t.external_id]
    )
    assert line.until(lambda: 3 == len([t for t in line.tasks() if t.contact.name == name and t.external_id])), (
        delivered
    )


def test_five_redeliveries_make_one_set_of_tasks(line):
    """The same webhook six times creates its tasks once."""
    event = line.event(name=uuid.uuid4().hex)
    assert all(line.post(event).is_success for _ in range(6))
    assert line.until(lambda: 3 == len(titles(line, event["lead"]["name"])))
    marker = line.event(name=uuid.uuid4().hex)
    line.post(marker)
    assert line.until(lambda: 3 == len(titles(line, marker["lead"]["name"])))
    assert 3 == len(titles(line, event["lead"]["name"]))


@pytest.mark.parametrize("signature", ["", "0" * 64, "not hex", "N/A", "\u00e9".encode("latin-1"), "sha256=", None])
def test_a_bad_signature_is_refused_and_nothing_is_stored(line, signature):
    """A wrong, missing, empty, malformed or non-ASCII signature gets 401, and the ledger keeps nothing."""
    name = uuid.uuid4().hex
    body = json.dumps(line.event(name=name)).encode()
    headers = {} if signature is None else {"X-Signature": signature}
    answer = httpx.post(f"{line.url}/webhooks/crm", content=body, headers=headers, timeout=10)
    assert 401 == answer.status_code
    events = json.loads(line.cli("events", "--json").stdout)
    assert not [event for event in events if (event["contact"] or {}).get("name") == name]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\x00\xff\xfe",
        b"[" * 100_000,
        b'{"event": "lead.created", "id": 1e999, "lead": {"value": NaN}}',
        b'{"event": {"a": 1}, "id": [1], "lead": 7}',
        b'{"event": "lead.created", "id": "' + b"9" * 5000 + b'", "lead": {"value": ' + b"9" * 5000 + b"}}",
        b'{"event": "lead.created", "id": "\\ud800", "lead": {"name": "\\u0000"}}',
    ],
)
def test_signed_garbage_is_never_a_server_error(line, body):
    """Whatever a verified sender sends, the answer is no 5xx and the next event is processed."""
    assert line.post(body).status_code < 500
    assert 200 == httpx.get(f"{line.url}/readyz").status_code


def test_a_blip_costs_no_hour(line):
    """A provider that answers 503 once, 429 with a short Retry-After, or refuses, gets the task once, at once."""
    for fault in ({"status": 503}, {"status": 429, "headers": {"Retry-After": "1"}}):
        name = uuid.uuid4().hex
        line.sandbox.script([{"provider": "vambe", "match": {"title": f"Person {name}"}, "times": 1, "answer": fault}])
        line.post(line.event("deal.created", name=name))
        assert line.until(lambda name=name: [("vambe", f"Person {name}")] == titles(line, name)), fault


def test_a_busy_provider_is_tried_again_when_the_rule_says(line):
    """A provider that stays busy makes the task wait; exponential with a delay of an hour shows it due in an hour."""
    name = uuid.uuid4().hex
    line.sandbox.script(
        [{"provider": "mindhunters", "match": {"title": f"Call {name}"}, "times": 99, "answer": {"status": 503}}]
    )
    line.post(line.event(name=name))

    def waiting():
        tasks = json.loads(line.cli("tasks", "--json").stdout)
        return [t for t in tasks if t["contact"]["name"] == name and t["state"] == "waiting"]

    (task,) = line.until(waiting, 30)
    assert (1, "make_call") == (task["attempts"], task["type"])
    assert "503" in task["reason"]
    stored = next(t for t in line.tasks() if t.id == task["id"])
    assert 3595 <= (stored.due_at - stored.first_attempt_at).total_seconds() <= 3630


def test_a_refusal_ends_the_task_with_the_providers_reason(line):
    """What the provider refuses is dead at once, with its own words; the other tasks of the event are delivered."""
    name = uuid.uuid4().hex
    refusal = {
        "success": False,
        "message": "Agent is archived",
        "error": {"code": "VALIDATION_ERROR", "field": "agent_uuid"},
    }
    line.sandbox.script(
        [
            {
                "provider": "mindhunters",
                "match": {"title": f"Call {name}"},
                "times": 9,
                "answer": {"status": 422, "body": refusal},
            }
        ]
    )
    line.post(line.event(name=name))
    assert line.until(lambda: 2 == len(titles(line, name)))
    (dead,) = line.until(lambda: [t for t in line.tasks() if t.contact.name == name and t.state is TaskState.DEAD])
    assert dead.reason.startswith("422")
    assert "Agent is archived" in dead.reason
    assert 1 == dead.attempts


def test_an_unanswered_request_is_unknown_until_a_person_settles_it(line):
    """A provider that hangs up and cannot be asked leaves the task unknown, never sent again; `leadwire settle` ends it."""
    name = uuid.uuid4().hex
    line.sandbox.turn({"vambe.listing": "status_500"})
    line.sandbox.script(
        [{"provider": "vambe", "match": {"title": f"Person {name}"}, "times": 1, "answer": "hang_up_after"}]
    )
    line.post(line.event("deal.created", name=name))
    (task,) = line.until(lambda: [t for t in line.tasks() if t.contact.name == name and t.state is TaskState.UNKNOWN])
    assert [("vambe", f"Person {name}")] == titles(line, name)
    done = line.cli("settle", task.id, "--delivered", "made-by-hand")
    assert 0 == done.returncode, done.stderr
    assert "made-by-hand" == next(t for t in line.tasks() if t.id == task.id).external_id
    line.sandbox.turn({"vambe.listing": "whole"})


def test_a_rejected_credential_pauses_the_provider(line):
    """401 makes the provider's tasks wait without losing an attempt; the other provider goes on."""
    name = uuid.uuid4().hex
    line.sandbox.script([{"provider": "vambe", "match": {}, "times": 1, "answer": {"status": 401}}])
    line.post(line.event(name=name))
    assert line.until(
        lambda: [("mindhunters", f"Call {name}"), ("mindhunters", f"Welcome {name}")] == titles(line, name)
    )
    (task,) = line.until(lambda: [t for t in line.tasks() if t.contact.name == name and t.state is TaskState.WAITING])
    assert (0, True) == (task.attempts, "401" in task.reason)


def test_explain_names_the_test_that_failed(line):
    """For a lead that was left alone the command names rule, test, the value seen and the value wanted."""
    line.post(line.event(value=9000, name=uuid.uuid4().hex))
    said = line.until(lambda: _explained(line, "9000"))
    for wanted in ("big-lead", "data.value", "9000", "10000"):
        assert wanted in said


def _explained(line, value):
    said = line.cli("explain", "--last").stdout
    return said if value in said else None


def test_celerys_commands_find_the_broker(line):
    """`leadwire celery` finds the worker through the broker that `leadwire up` started, though no setting names it."""
    done = line.cli("celery", "inspect", "ping")
    assert (0, True) == (done.returncode, "leadwire@" in done.stdout), done.stderr
