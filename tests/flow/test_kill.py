"""Processes that are killed in the middle of the work."""

import os
import signal
import threading
import time
import uuid

import httpx

from rules.vocabulary import TaskState
from tests.flow.houses import every_house, on_postgresql
from tests.flow.processes import command_of, processes_of

SETTLED = {TaskState.DELIVERED, TaskState.UNKNOWN, TaskState.DEAD}


class Load(threading.Thread):
    """Posts events until told to stop, and remembers those that were answered with 2xx."""

    def __init__(self, line) -> None:
        super().__init__(daemon=True)
        self.line = line
        self.accepted: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        """Post, whatever happens at the other end."""
        with httpx.Client() as client:
            while not self.stopping.is_set():
                event = self.line.event("deal.created", name=uuid.uuid4().hex)
                try:
                    if self.line.post(event, client=client).is_success:
                        self.accepted.append(event["lead"]["name"])
                except httpx.HTTPError:
                    self.stopping.wait(0.05)

    def end(self) -> list[str]:
        """Stop, and return the names of what was accepted."""
        self.stopping.set()
        self.join(10)
        return self.accepted


def created(line) -> list[str]:
    """Return the contacts for whom the provider has a task, one entry for each task."""
    return sorted(task["title"].removeprefix("Person ") for task in line.sandbox.tasks("vambe"))


@every_house
def test_killing_everything_under_load_loses_nothing_and_repeats_nothing(own_line):
    """SIGKILL to the supervisor, three times under load: every accepted event has its task or is unknown, none twice."""
    accepted: list[str] = []
    for _ in range(3):
        own_line.start()
        loads = [Load(own_line) for _ in range(4)]
        for load in loads:
            load.start()
        time.sleep(1.5)  # the load itself
        own_line.kill()
        for load in loads:
            accepted += load.end()
        assert own_line.until(lambda: not processes_of(own_line.home), 5), processes_of(own_line.home)
    own_line.start()

    def settled():
        tasks = {task.contact.name: task for task in own_line.tasks()}
        return all(name in tasks and tasks[name].state in SETTLED for name in accepted)

    assert accepted
    assert own_line.until(settled, 60)
    arrived = created(own_line)
    assert len(arrived) == len(set(arrived))
    tasks = {task.contact.name: task for task in own_line.tasks()}
    missing = [name for name in accepted if name not in arrived]
    assert all(tasks[name].state is TaskState.UNKNOWN for name in missing)


@every_house
def test_a_killed_worker_is_replaced_and_its_call_is_unknown(own_line):
    """A worker killed in the middle of a call: the call is unknown at once, a new worker takes the next event."""
    own_line.start()
    name = uuid.uuid4().hex
    own_line.sandbox.script(
        [{"provider": "vambe", "match": {"title": f"Person {name}"}, "times": 1, "answer": {"delay_seconds": 20}}]
    )
    own_line.post(own_line.event("deal.created", name=name))
    assert own_line.until(lambda: [t for t in own_line.tasks() if t.state is TaskState.SENDING])
    (worker,) = [pid for pid in processes_of(own_line.home) if b"worker" in command_of(pid)]
    os.kill(worker, signal.SIGKILL)
    assert own_line.until(lambda: [t for t in own_line.tasks() if t.state is TaskState.UNKNOWN], 10)
    after = uuid.uuid4().hex
    own_line.post(own_line.event("deal.created", name=after))
    assert own_line.until(lambda: f"Person {after}" in [task["title"] for task in own_line.sandbox.tasks("vambe")], 30)


@every_house
def test_a_killed_broker_loses_nothing(own_line, house):
    """The broker killed, or emptied, under load: webhooks are accepted all along, and every task arrives once."""
    own_line.start()
    load = Load(own_line)
    load.start()
    for end in house.broker_ends():
        time.sleep(1)  # the load itself
        before = len(load.accepted)
        end(own_line)
        assert own_line.until(lambda before=before: len(load.accepted) > before, 5)
    time.sleep(1)  # the load itself
    accepted = load.end()

    assert len(accepted) > 10
    assert own_line.until(lambda: sorted(accepted) == created(own_line), 60), set(accepted) - set(created(own_line))


@on_postgresql
def test_a_killed_database_loses_nothing(own_line, house):
    """PostgreSQL killed, or restarted, under load: what was accepted arrives or is unknown, and nothing twice."""
    own_line.start()
    loads = [Load(own_line) for _ in range(3)]
    for load in loads:
        load.start()
    time.sleep(1)  # the load itself
    house.end_database()
    time.sleep(0.5)  # a moment without a database
    house.postgres.again()
    time.sleep(1)  # the load itself
    accepted = [name for load in loads for name in load.end()]

    def unsettled():
        tasks = {task.contact.name: task.state for task in own_line.tasks()}
        return [name for name in accepted if tasks.get(name) not in SETTLED]

    assert len(accepted) > 10
    assert own_line.until(lambda: not unsettled(), 90), unsettled()
    arrived = created(own_line)
    assert len(arrived) == len(set(arrived))
    unknown = {task.contact.name for task in own_line.tasks() if task.state is TaskState.UNKNOWN}
    assert set(accepted) <= set(arrived) | unknown


def test_a_second_supervisor_is_refused(own_line):
    """Two `leadwire up` never share a data folder: the second says so and ends, the first goes on."""
    own_line.start()
    second = own_line.cli("up")
    assert 1 == second.returncode
    assert "another `leadwire up`" in second.stderr
    assert 200 == httpx.get(f"{own_line.url}/readyz").status_code


def test_sigterm_stops_everything_cleanly(own_line):
    """SIGTERM ends the supervisor with 0 and leaves no process."""
    own_line.start()
    assert 0 == own_line.stop()
    assert [] == processes_of(own_line.home)
