"""The thread that answers ends, and the one that asks for outcomes, over a real ledger and the sandbox."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from rules.engine import decide
from rules.loader import load
from rules.vocabulary import Contact, Event, ProviderName, TaskState, Verdict
from worker import providers
from worker.background import BackgroundWork, FollowUps, OutcomePoller, waits_for_outcomes
from worker.clock import Clock, utc_now
from worker.context import AdaptiveBatchSize, Bulkhead, ProviderClient, WorkerContext
from worker.delivery import DeliveryOutcome
from worker.http import HttpClient
from worker.ledger import Delivery, IncomingEvent, Limits, PauseKind, Settlement, migrate, open_ledger
from worker.sandbox import MINDHUNTERS_TOKEN, Sandbox
from worker.settings import Settings

AGENT = "11111111-1111-4111-8111-111111111111"
RULES = f"""
rules:
  - id: r
    when: lead.created
    then:
      - make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}"}}
        on_failure:
          - team_task: {{title: "{{{{ failure.reason }}}}", assign: ["${{SOMEBODY}}"]}}
          - id: later
            whatsapp_template: {{agent: {AGENT}, template: {AGENT}, at: +1h}}
        on_outcome: {{failed: [{{team_task: {{title: "{{{{ failure.reason }}}}", assign: ["${{SOMEBODY}}"]}}}}]}}
"""
ENVIRONMENT = {"SOMEBODY": "someone"}


class Outbox:
    """Stands where the dispatcher stands, and keeps what it is given."""

    def __init__(self):
        self.sent = []

    def tasks(self, refs):
        self.sent += [ref.name for ref in refs]


class Hall:
    """Services around one ledger, with a clock that is moved by hand."""

    def __init__(self, ledger, sandbox, **settings):
        self.ledger, self.sandbox = ledger, sandbox
        self.ahead = timedelta()
        self.outbox = Outbox()
        self.settings = Settings.from_environment({"LEADWIRE_MINDHUNTERS_POLL": "10", **ENVIRONMENT, **settings})
        self.rule_set = load({"a.yaml": RULES}, ENVIRONMENT)
        ledger.rule_sets.store(self.rule_set.version, self.rule_set.files, utc_now())
        self.context = self.with_book(self.rule_set)

    def with_book(self, rule_set, **environment):
        """Return the services of a worker in which this rule set is in force."""
        provider = providers.load(ProviderName.MINDHUNTERS)
        client = ProviderClient(
            provider=provider,
            transport=HttpClient(self.sandbox.mindhunters_url, provider.auth_headers(MINDHUNTERS_TOKEN)),
            bulkhead=Bulkhead(2),
            pool=ThreadPoolExecutor(1),
            batch_size=AdaptiveBatchSize(),
        )
        return WorkerContext(
            settings=self.settings.model_copy(update={"environment": environment or ENVIRONMENT}),
            ledger=self.ledger,
            publisher=self.outbox,
            rule_set=rule_set,
            clients={ProviderName.MINDHUNTERS: client},
            owner="w-1",
            clock=Clock(now=self.now, awake_seconds=self.awake_seconds),
        )

    def now(self):
        return utc_now() + self.ahead

    def awake_seconds(self):
        return self.ahead.total_seconds()

    def called(self, key="1"):
        """Return the claim of a new call."""
        event = Event(
            id=f"ev_{key}",
            source="crm",
            type="lead.created",
            occurred_at=self.now(),
            received_at=self.now(),
            contact=Contact(name="Ana", phone="+56911112222"),
        )
        delivery = Delivery(id=f"dl_{key}", source="crm", received_at=self.now(), body=b"{}", content_hash="h")
        self.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=key, content_hash="h")])
        self.ledger.tasks.insert([decide(self.rule_set, event, now=self.now())], self.now())
        (task,) = self.ledger.queries.tasks_of(event.id)
        (claim,) = self.ledger.tasks.claim([task.id], self.now(), timedelta(seconds=60), "w-1")
        return claim

    def refused(self):
        """Have a call refused, and return its task."""
        claim = self.called()
        refusal = Settlement(verdict=Verdict.REFUSED, state=TaskState.DEAD, reason="422 no agent", status=422)
        assert self.ledger.tasks.settle(claim, refusal, self.now())
        return claim.task

    def delivered(self):
        """Have a call made at the sandbox, and return its task and the provider's id."""
        claim = self.called()
        client = self.context.clients[ProviderName.MINDHUNTERS]
        sent = client.transport.send(client.provider.build_request(claim.task, self.now()))
        external_id = client.provider.read_response(sent, self.now()).external_id
        poll_at = self.now() + timedelta(seconds=10)
        settlement = Settlement(
            verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id=external_id, poll_at=poll_at
        )
        assert self.ledger.tasks.settle(claim, settlement, self.now())
        return claim.task, external_id


@pytest.fixture
def hall(tmp_path):
    """Give an open ledger with all that works on it."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    with Sandbox() as sandbox:
        hall = Hall(ledger, sandbox)
        yield hall
        for client in hall.context.clients.values():
            client.pool.shutdown()
            client.transport.close()
    ledger.close()


def test_a_noted_end_is_answered_and_its_tasks_are_sent(hall):
    """What is due goes out, what is due later is shown, and a second round finds nothing."""
    task = hall.refused()
    shown = []
    answering = FollowUps(hall.context, shown.extend)

    assert [1, 0] == [answering.once(), answering.once()]
    assert ["make_call/team_task"] == hall.outbox.sent
    assert ["make_call/later"] == [one.name for one in shown]
    call, team, later = hall.ledger.queries.tasks_of("ev_1")
    assert (task.id, task.id, "422 no agent") == (team.parent, later.parent, team.fields["title"])
    assert call.note is None


def test_the_rule_set_of_the_task_counts_not_the_one_in_force(hall):
    """Another set is in force by now: what follows is read from the ledger."""
    hall.refused()
    answering = FollowUps(hall.with_book(load({"a.yaml": "rules: []"}, {})))

    assert 1 == answering.once()
    assert ["make_call/team_task"] == hall.outbox.sent


def test_a_variable_that_is_gone_is_told_and_tried_again_by_the_next_worker(hall):
    """Five tries, then a remark on the task that names the variable; a worker that has it answers after all."""
    task = hall.refused()
    answering = FollowUps(hall.with_book(load({"a.yaml": "rules: []"}, {}), OTHER="x"))
    tries = 0
    for _ in range(8):
        tries += answering.once()
        hall.ahead += timedelta(minutes=5)

    assert 5 == tries
    assert "the environment variable SOMEBODY is not set" in hall.ledger.queries.task(task.id).note
    assert [] == hall.outbox.sent
    mended = FollowUps(hall.context)
    mended.retry_set_aside()
    assert 1 == mended.once()
    assert ["make_call/team_task"] == hall.outbox.sent


def test_what_follows_is_planned_at_once_when_the_worker_notes_an_end(hall):
    """A worker that has just ended a task badly does not wait for its next round; all its threads end when it does."""
    background = BackgroundWork(hall.context, SimpleNamespace(read=lambda: None, close=lambda: None))
    background.start()
    hall.refused()
    background.note([DeliveryOutcome(task_id="tk_1", state=TaskState.DEAD, words="")])
    give_up_at = time.monotonic() + 10
    while not hall.outbox.sent and time.monotonic() < give_up_at:
        time.sleep(0.01)
    background.stop()

    assert ["make_call/team_task"] == hall.outbox.sent
    assert not any(thread.is_alive for thread in background.threads)


def test_an_outcome_is_asked_for_kept_and_answered(hall):
    """The provider says that it failed: kept with the task, and what follows says so."""
    task, external_id = hall.delivered()
    following = OutcomePoller(hall.context)
    assert 0 == following.once()
    hall.sandbox.move(external_id, "failed")
    hall.ahead += timedelta(seconds=11)

    assert [1, 0] == [following.once(), following.once()]
    assert "failed" == hall.ledger.queries.task(task.id).outcome
    FollowUps(hall.context).once()
    team = hall.ledger.queries.tasks_of("ev_1")[-1]
    assert ("make_call/failed/team_task", "mindhunters says it has ended: failed") == (team.name, team.fields["title"])


def test_a_task_that_has_not_ended_is_asked_about_again(hall):
    """Its word is kept meanwhile; each pause is twice the last one."""
    task, external_id = hall.delivered()
    following = OutcomePoller(hall.context)
    hall.sandbox.move(external_id, "on_hold")
    taken = []
    for seconds in (11, 15, 6, 35, 6):
        hall.ahead += timedelta(seconds=seconds)
        taken.append(following.once())

    assert [1, 0, 1, 0, 1] == taken
    assert "on_hold" == hall.ledger.queries.task(task.id).outcome


@pytest.mark.parametrize("answer", [{"status": 500}, {"status": 404, "body": {"success": False}}, "hang_up_before"])
def test_an_answer_that_tells_nothing_changes_nothing(hall, answer):
    """A fault at the provider is no outcome: the task is asked about again."""
    task, _ = hall.delivered()
    hall.sandbox.script([{"provider": "mindhunters", "method": "GET", "times": 1, "answer": answer}])
    following = OutcomePoller(hall.context)
    hall.ahead += timedelta(seconds=11)

    assert 1 == following.once()
    assert hall.ledger.queries.task(task.id).outcome is None
    hall.ahead += timedelta(seconds=30)
    assert 1 == following.once()
    assert hall.ledger.queries.task(task.id).outcome is not None


def test_a_paused_provider_is_not_asked(hall):
    """What was ordered for its tasks holds for questions, too."""
    hall.delivered()
    hall.ahead += timedelta(seconds=11)
    hall.ledger.limits.pause(ProviderName.MINDHUNTERS, hall.now() + timedelta(hours=1), "by a person", hall.now())

    assert 0 == OutcomePoller(hall.context).once()


def many(hall, number):
    """Have so many delivered calls followed, all due to be asked about."""
    for place in range(number):
        claim = hall.called(f"{place}")
        settlement = Settlement(
            verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id=f"x{place}", poll_at=hall.now()
        )
        assert hall.ledger.tasks.settle(claim, settlement, hall.now())
    hall.ahead += timedelta(seconds=11)


def test_questions_keep_to_the_rate(hall):
    """Twelve questions at two a second, of which two may come at once: the last leaves five seconds after the first."""
    many(hall, 12)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        hall.ahead += timedelta(seconds=seconds)

    began_at = utc_now()
    clock = Clock(now=lambda: began_at + hall.ahead, awake_seconds=hall.awake_seconds, sleep=sleep)
    limits = {ProviderName.MINDHUNTERS: Limits(rate_per_second=2, burst=2)}
    following = OutcomePoller(replace(hall.context, clock=clock, limits=limits))
    assert 12 == following.once() + following.once()
    assert 5 <= sum(slept) < 6


def test_a_worker_that_ends_waits_for_no_place(hall):
    """It stops at once, and nothing was asked."""
    many(hall, 1)
    limits = {ProviderName.MINDHUNTERS: Limits(rate_per_second=0.3, burst=1)}
    context = replace(hall.context, limits=limits)
    hall.ledger.limits.charge(ProviderName.MINDHUNTERS, limits[ProviderName.MINDHUNTERS], hall.now())
    context.closing.set()
    assert 0 == OutcomePoller(context).once()


@pytest.mark.parametrize(
    ("answer", "kind", "seconds"),
    [
        ({"status": 429, "headers": {"Retry-After": "40"}}, PauseKind.ASKED, 40),
        ({"status": 401}, PauseKind.ANSWER, 60),
        ({"status": 403}, PauseKind.ANSWER, 60),
        ({"status": 503, "headers": {"Retry-After": "40"}}, None, 40),
        ("hang_up_before", None, 5),
    ],
)
def test_a_question_that_is_not_welcome_ends_the_round(hall, caplog, answer, kind, seconds):
    """Nobody is asked until it may be over; an answer that would pause the provider does, and one alert says so."""
    many(hall, 3)
    hall.sandbox.script([{"provider": "mindhunters", "method": "GET", "times": None, "answer": answer}])
    following = OutcomePoller(hall.context)
    assert [1, 0] == [following.once(), following.once()]
    assert [kind] == [state.kind for state in hall.ledger.limits.states()] or kind is None
    assert (1 if kind else 0) == len([record for record in caplog.records if record.levelname == "ERROR"])
    hall.sandbox.behave()
    hall.ahead += timedelta(seconds=seconds - 3)
    assert 0 == following.once()
    hall.ahead += timedelta(seconds=4)
    assert following.once() >= 2


def test_rules_that_wait_for_outcomes_are_known(hall):
    """A worker can say that nobody asks for what a rule waits for."""
    assert waits_for_outcomes(hall.rule_set)
    assert not waits_for_outcomes(load({"a.yaml": RULES.partition("        on_outcome")[0]}, ENVIRONMENT))
