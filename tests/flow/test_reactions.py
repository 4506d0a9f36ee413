"""What follows on the end of a task, as real processes: made once, whoever is killed, by the rules that planned the task."""

import json
import os
import signal
import time
import uuid
from contextlib import closing
from datetime import timedelta

import pytest

from rules.vocabulary import TaskState, Verdict
from tests.flow.conftest import AGENT, PERSON, RULES, Line
from tests.flow.houses import every_house
from tests.flow.processes import command_of, processes_of
from worker.clock import utc_now
from worker.ledger import Settlement, open_ledger

ANSWERED = (
    RULES.partition("rules:\n")[0]
    + f"""rules:
  - id: answered
    when: lead.created
    then:
      - make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}"}}
        retry: {{delay: 1s, jitter: 0, max_attempts: 99}}
        on_failure:
          - team_task:
              title: "Not placed {{{{ contact.name }}}}"
              description: "{{{{ failure.status | default('no status') }}}} of {{{{ failure.title }}}}"
              assign: [{PERSON}]
        on_outcome:
          failed: [{{team_task: {{title: "Nobody answered {{{{ contact.name }}}}", assign: [{PERSON}]}}}}]
"""
)
REFUSAL = {
    "status": 422,
    "body": {"success": False, "message": "Agent is archived", "error": {"code": "VALIDATION_ERROR"}},
}


@pytest.fixture
def answering(house, tmp_path):
    """Give a line of one test's own that asks for outcomes every second, not started yet."""
    line = Line(tmp_path, ANSWERED, **house.settings(), LEADWIRE_MINDHUNTERS_POLL="1")
    yield line
    line.close()


def refuse(line, name, times=99):
    """Have the call to this contact refused."""
    title = {"contains": f"Call {name}"}
    line.sandbox.script([{"provider": "mindhunters", "match": {"title": title}, "times": times, "answer": REFUSAL}])


def team_tasks(line, name=""):
    """Return the titles of the team tasks at Vambe that end in this."""
    return [task["title"] for task in line.sandbox.tasks("vambe") if task["title"].endswith(name)]


def task_of(line, name, task="make_call"):
    """Return the task of this name for a contact; None while there is none."""
    return next((one for one in line.tasks() if (one.contact.name, one.name) == (name, task)), None)


@every_house
def test_a_refused_call_makes_its_team_task_once(answering):
    """A refusal leads to the team task of its rule, with the failure's facts, and `show` links the two."""
    answering.start()
    name = uuid.uuid4().hex
    refuse(answering, name)
    answering.post(answering.event(name=name))

    assert answering.until(lambda: team_tasks(answering, name)), task_of(answering, name)
    (made,) = [task for task in answering.sandbox.tasks("vambe") if task["title"] == f"Not placed {name}"]
    call, follow_up = task_of(answering, name), task_of(answering, name, "make_call/team_task")
    assert made["description"].startswith(f"422 of Call {name} [lw:")
    assert (TaskState.DEAD, call.id) == (call.state, follow_up.parent)
    shown = json.loads(answering.cli("show", call.id, "--json").stdout)
    assert [follow_up.id] == [one["id"] for one in shown["follow_ups"]]
    assert "follows on" in answering.cli("show", follow_up.id).stdout
    assert [f"Not placed {name}"] == team_tasks(answering, name)


def test_workers_that_are_killed_lose_no_answer_and_double_none(answering):
    """Workers killed again and again while calls are refused: one team task for each call, at the provider, too."""
    answering.start()
    names = [uuid.uuid4().hex for _ in range(24)]
    refuse(answering, "", times=999)
    for number, name in enumerate(names):
        answering.post(answering.event(name=name))
        if number % 6 == 5:
            time.sleep(0.1)  # let it get somewhere
            for pid in processes_of(answering.home):
                if b"worker" in command_of(pid):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)  # and be noticed

    expected = sorted(f"Not placed {name}" for name in names)
    answering.until(lambda: len(set(team_tasks(answering))) == len(names), 90)
    assert expected == sorted(team_tasks(answering))


def test_an_end_that_was_noted_before_the_line_died_is_answered_after(answering):
    """Settled, and nothing else: the next start makes what follows, once."""
    answering.start()
    name = uuid.uuid4().hex
    answering.sandbox.script(
        [{"provider": "mindhunters", "match": {"title": f"Call {name}"}, "times": 99, "answer": {"status": 503}}]
    )
    answering.post(answering.event(name=name))
    assert answering.until(lambda: (task := task_of(answering, name)) and task.state is TaskState.WAITING, 30)
    answering.kill()
    assert answering.until(lambda: not processes_of(answering.home), 10)
    with closing(open_ledger(f"sqlite:///{answering.home / 'ledger.sqlite3'}")) as ledger:
        due_at = utc_now() + timedelta(hours=1)
        (claim,) = ledger.tasks.claim([task_of(answering, name).id], due_at, timedelta(seconds=60), "test")
        ledger.tasks.settle(
            claim, Settlement(verdict=Verdict.REFUSED, state=TaskState.DEAD, reason="400 no"), utc_now()
        )
    assert [] == team_tasks(answering, name)
    answering.start()

    assert answering.until(lambda: team_tasks(answering, name), 30)
    assert [f"Not placed {name}"] == team_tasks(answering, name)


def test_an_outcome_is_learned_and_answered_once(answering):
    """A call that nobody answered at Mindhunters is shown as failed, and its team task is made once."""
    answering.start()
    name, other = uuid.uuid4().hex, uuid.uuid4().hex
    answering.post(answering.event(name=name))
    answering.post(answering.event(name=other))
    assert answering.until(lambda: (task := task_of(answering, name)) and task.external_id)
    assert answering.until(lambda: (task := task_of(answering, other)) and task.external_id)
    answering.sandbox.move(task_of(answering, name).external_id, "failed")
    answering.sandbox.move(task_of(answering, other).external_id, "on_hold")

    assert answering.until(lambda: team_tasks(answering, name), 30)
    assert answering.until(lambda: task_of(answering, other).outcome == "on_hold", 30)
    assert [f"Nobody answered {name}"] == team_tasks(answering)
    tasks = {task["id"]: task for task in json.loads(answering.cli("tasks", "--json").stdout)}
    assert "failed" == tasks[task_of(answering, name).id]["outcome"]


def test_what_follows_is_that_of_the_rules_that_planned_the_task(answering):
    """Rules changed while a call waits: its failure leads to what its own rule set says, not to what is in force."""
    answering.start()
    name = uuid.uuid4().hex
    busy = {"provider": "mindhunters", "match": {"title": f"Call {name}"}, "times": 999, "answer": {"status": 503}}
    answering.sandbox.script([busy])
    answering.post(answering.event(name=name))
    assert answering.until(lambda: (task := task_of(answering, name)) and task.state is TaskState.WAITING, 30)
    answering.stop()
    (answering.rules / "rules.yaml").write_text(ANSWERED.replace("Not placed", "Changed"))
    answering.sandbox.behave()
    refuse(answering, name)
    answering.start()

    assert answering.until(lambda: team_tasks(answering, name), 40)
    assert [f"Not placed {name}"] == team_tasks(answering)
    after = uuid.uuid4().hex
    refuse(answering, after)
    answering.post(answering.event(name=after))
    assert answering.until(lambda: [f"Changed {after}"] == team_tasks(answering, after))
