"""Requests whose outcome nobody knows, in real processes: looked up at the provider, and then settled."""

import json
import os
import signal
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from rules.vocabulary import ProviderName, TaskState
from tests.flow.processes import command_of, processes_of
from worker.clock import Clock
from worker.http import HttpClient
from worker.ledger import open_ledger
from worker.providers import load
from worker.reconciler import Reconciler
from worker.sandbox import VAMBE_API_KEY

#: What a dead worker sent is looked up when its lease of 60 s has ended; the rest is for a busy machine.
SETTLED_WITHIN_SECONDS = 150
#: What was lost and settled by its own worker is made again this long after its event at the latest.
MADE_AGAIN_WITHIN_SECONDS = 30

#: The event that makes one task, and its title without the name.
CALL, PERSON = ("lead.updated", "mindhunters", "Quick"), ("deal.created", "vambe", "Person")


class Case:
    """One task whose first request goes wrong in one way."""

    def __init__(self, line, kind, answer):
        self.line = line
        self.type, self.provider, self.word = kind
        self.name = uuid.uuid4().hex
        if answer is not None:
            fault = {"provider": self.provider, "match": {"title": f"{self.word} {self.name}"}, "answer": answer}
            line.sandbox.script([{**fault, "times": 1}])
        line.post(line.event(self.type, name=self.name))

    def task(self):
        """Return the task, None before it was planned."""
        return next((task for task in self.line.tasks() if task.contact.name == self.name), None)

    def state(self):
        """Return the task's state."""
        task = self.task()
        return task and task.state

    def made(self):
        """Return the provider's ids of what it holds of this task."""
        held = self.line.sandbox.tasks(self.provider)
        return [task.get("uuid") or task["id"] for task in held if task["title"].endswith(self.name)]


@pytest.fixture(scope="module")
def cases(line):
    """Give a task for each way a request goes wrong, all at the same time, when each has ended."""
    found = {
        f"{provider} {name}": Case(line, kind, answer)
        for provider, kind in (("mindhunters", CALL), ("vambe", PERSON))
        for name, answer in (
            ("stored", "hang_up_after"),
            ("lost", "hang_up_before"),
            ("failed", {"status": 500, "store": True}),
            ("nameless", {"status": 201, "store": True, "body": "made"}),
        )
    }
    lost = [case for name, case in found.items() if name.endswith("lost")]
    assert line.until(lambda: all(case.made() for case in lost), MADE_AGAIN_WITHIN_SECONDS), [
        each.task() for each in lost
    ]
    # A request that is under way while the worker is killed; the provider executes it.
    found["killed"] = killed = Case(line, CALL, {"delay_seconds": 20})
    assert line.until(lambda: killed.state() is TaskState.SENDING and killed.made())
    (worker,) = [pid for pid in processes_of(line.home) if b"worker" in command_of(pid)]
    os.kill(worker, signal.SIGKILL)
    assert line.until(lambda: killed.state() is TaskState.UNKNOWN, 10)

    def settled():
        return all(case.state() is TaskState.DELIVERED for case in found.values())

    assert line.until(settled, SETTLED_WITHIN_SECONDS), {name: case.task() for name, case in found.items()}
    return found


def test_what_the_provider_stored_is_found_and_delivered(cases):
    """Stored, and no usable answer: delivered under the provider's id, with one attempt, exactly one at the provider."""
    for name in ("stored", "failed", "nameless"):
        for provider in ("mindhunters", "vambe"):
            case = cases[f"{provider} {name}"]
            task = case.task()
            assert ([task.external_id], 1) == (case.made(), task.attempts)
            assert "found at the provider" in task.reason


def test_what_the_provider_never_got_is_sent_again(cases):
    """Hung up before storing: absent from two listings, sent again within 30 s, exactly one at the provider."""
    for provider in ("mindhunters", "vambe"):
        case = cases[f"{provider} lost"]
        task = case.task()
        assert ([task.external_id], 2) == (case.made(), task.attempts)


def test_what_a_killed_worker_sent_is_found(cases):
    """SIGKILL while the request is under way: found after the lease, by another worker, exactly one at the provider."""
    task = cases["killed"].task()
    assert ([task.external_id], 1) == (cases["killed"].made(), task.attempts)


def test_flower_is_told_what_a_look_up_found(cases, line):
    """No touch stays a failure in Flower that was delivered after all."""

    def states():
        url = f"{line.state['flower_url']}/api/tasks"
        auth = ("operator", (line.home / "operator-token").read_text().strip())
        shown = httpx.get(url, auth=auth, timeout=10).json()
        return {shown.get(case.task().id, {}).get("state") for case in cases.values()}

    assert line.until(lambda: states() == {"SUCCESS"}), states()


def test_a_broken_look_up_leaves_it_to_a_person(cases, line):
    """Never sent again by itself: the task stays unknown, the commands say what to do, and a person's word settles it."""
    line.sandbox.turn({"vambe.listing": "status_500"})
    case = Case(line, PERSON, "hang_up_before")
    assert line.until(lambda: case.state() is TaskState.UNKNOWN)
    look_up_ahead(line)

    task = case.task()
    assert "asked 5 times" in task.reason
    assert task.id in line.cli("tasks", "--state", "unknown").stdout
    said = json.loads(line.cli("tasks", "--state", "unknown", "--json").stdout)
    assert [f"leadwire settle {task.id} --not-delivered"] == [
        one["reason"].rpartition(" | ")[2] for one in said if one["id"] == task.id
    ]
    assert (TaskState.UNKNOWN, []) == (case.state(), case.made())
    assert 0 == line.cli("settle", task.id, "--not-delivered").returncode
    assert line.until(lambda: case.state() is TaskState.DELIVERED)
    assert 1 == len(case.made())


def look_up_ahead(line):
    """Do the look-ups of the next ten minutes with a reconciler whose clock runs ahead."""
    provider = load(ProviderName.VAMBE)
    transport = HttpClient(line.sandbox.vambe_url, provider.auth_headers(VAMBE_API_KEY))
    ledger = open_ledger(f"sqlite:///{line.home / 'ledger.sqlite3'}")
    for minutes in range(2, 12):
        now = datetime.now(UTC) + timedelta(minutes=minutes)
        Reconciler(ledger, provider, transport, clock=Clock(now=lambda now=now: now)).once()
    ledger.close()
    transport.close()
