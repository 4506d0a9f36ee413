"""A provider that takes its time."""

import time
import uuid

import httpx
import pytest

from rules.vocabulary import ProviderName, TaskState


@pytest.mark.houses("sqlite+valkey", "postgresql+rabbitmq")
def test_a_slow_provider_does_not_delay_the_other(own_line):
    """While calls hang by the dozen, team tasks go on at once, and every call is made once in the end."""
    own_line.settings["LEADWIRE_WORKER_THREADS"] = "6"
    own_line.start()
    own_line.sandbox.script([{"provider": "mindhunters", "match": {}, "times": 12, "answer": {"delay_seconds": 4}}])
    for _ in range(12):
        own_line.post(own_line.event("lead.updated", name=uuid.uuid4().hex))
    assert own_line.until(lambda: 3 == len([t for t in own_line.tasks() if t.state is TaskState.SENDING]))
    names = [uuid.uuid4().hex for _ in range(10)]
    for name in names:
        own_line.post(own_line.event("deal.created", name=name))
    wanted = {f"Person {name}" for name in names}
    assert own_line.until(lambda: wanted == {task["title"] for task in own_line.sandbox.tasks("vambe")})
    calls = [t for t in own_line.tasks() if t.provider is ProviderName.MINDHUNTERS]
    assert any(t.state is not TaskState.DELIVERED for t in calls)
    assert own_line.until(lambda: 12 == len(own_line.sandbox.tasks("mindhunters")), 60)

    def delivered():
        return [t for t in own_line.tasks() if t.state is TaskState.DELIVERED]

    assert own_line.until(lambda: 22 == len(delivered()), 30)
    assert all(1 == t.attempts for t in delivered())


def test_a_provider_that_takes_25_seconds_for_everything_leaves_the_other_as_it_is(own_line):
    """Under the limits as they come, team tasks begin as soon beside sixty calls that hang as they did alone."""
    for name, value in (("RATE", "20"), ("CONCURRENCY", "8")):
        own_line.settings |= {f"LEADWIRE_MINDHUNTERS_{name}": value, f"LEADWIRE_VAMBE_{name}": value}
    own_line.start()

    def waits(number):
        """Have so many team tasks made, ten a second; return after how many seconds each began, shortest first."""
        names = [uuid.uuid4().hex for _ in range(number)]
        for name in names:
            own_line.post(own_line.event("deal.created", name=name))
            time.sleep(0.1)
        wanted = {f"Person {name}" for name in names}
        assert own_line.until(lambda: wanted <= {task["title"] for task in own_line.sandbox.tasks("vambe")}, 15)
        done = [t for t in own_line.tasks() if t.fields.get("title") in wanted]
        return sorted((t.first_attempt_at - t.due_at).total_seconds() for t in done)

    alone = waits(20)
    own_line.sandbox.script([{"provider": "mindhunters", "times": None, "answer": {"delay_seconds": 25}}])
    for _ in range(60):
        own_line.post(own_line.event("lead.updated", name=uuid.uuid4().hex))

    def calls(state):
        return [t for t in own_line.tasks() if t.provider is ProviderName.MINDHUNTERS and t.state is state]

    assert own_line.until(lambda: calls(TaskState.SENDING))
    beside = waits(60)
    assert beside[56] < max(1.0, 3 * alone[18])
    assert 1 <= len(calls(TaskState.SENDING)) <= 8
    assert {0, 1} >= {t.attempts for t in own_line.tasks()}
    own_line.kill()  # an orderly stop would wait for the calls that hang


def test_the_oldest_is_not_overtaken_for_ever(own_line):
    """While newcomers keep every slot of a slow provider taken, what was put back before them is sent all the same."""
    own_line.settings["LEADWIRE_WORKER_THREADS"] = "2"
    own_line.start()
    own_line.sandbox.script([{"provider": "mindhunters", "match": {}, "times": 99, "answer": {"delay_seconds": 0.3}}])
    oldest = [uuid.uuid4().hex for _ in range(4)]
    for name in oldest:
        own_line.post(own_line.event("lead.updated", name=name))

    def all_sent():
        own_line.post(own_line.event("lead.updated", name=uuid.uuid4().hex))
        titles = {task["title"] for task in own_line.sandbox.tasks("mindhunters")}
        return {f"Quick {name}" for name in oldest} <= titles

    assert own_line.until(all_sent, 25)


def test_a_worker_shows_that_it_takes_messages(own_line):
    """The sign by which a deaf worker is told is renewed by every message, and by nothing else."""
    own_line.start()
    sign = own_line.home / "worker-ready"
    before = sign.stat().st_mtime_ns
    own_line.post(own_line.event("deal.created", name=uuid.uuid4().hex))
    assert own_line.until(lambda: sign.stat().st_mtime_ns > before)


@pytest.mark.houses("sqlite+valkey", "postgresql+rabbitmq")
def test_what_planning_ends_is_seen_in_flower(own_line):
    """A task that is dead before any request shows in Flower as FAILURE under its own name."""
    own_line.settings["LEADWIRE_OPERATOR_TOKEN"] = "fake-operator-token"
    own_line.start()
    own_line.post(own_line.event("lead.updated", name="Nobody", phone=None))

    def shown():
        url = f"{own_line.state['flower_url']}/api/tasks"
        tasks = httpx.get(url, auth=("operator", "fake-operator-token"), timeout=10).json()
        return [task for task in tasks.values() if "leadwire.make_call" == task["name"] and "FAILURE" == task["state"]]

    (task,) = own_line.until(shown)
    assert "dead" in task["result"]
    assert "Nobody" not in str(task)
