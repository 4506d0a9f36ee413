"""What follows from looking up tasks that may have been executed: real ledger, stand-in for the providers, clock by hand."""

import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest

from rules.engine import correlation_tag
from rules.vocabulary import (
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Plan,
    ProviderName,
    RetryPolicy,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from worker.clock import Clock
from worker.http import HttpClient
from worker.ledger import Claim, Delivery, IncomingEvent, PauseKind, Settlement, migrate, open_ledger
from worker.providers import load
from worker.reconciler import BATCH, Reconciler
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox

AGENT = "228d7a0d-9072-4ca8-939b-959b75cc606a"
PERSON = "cccccccc-cccc-4ccc-8ccc-cccccccccccc"
LEASE = timedelta(seconds=60)
KINDS = {
    ProviderName.MINDHUNTERS: (TaskType.MAKE_CALL, {"agent": AGENT, "contact": {"phone_number": "+56911112222"}}),
    ProviderName.VAMBE: (TaskType.TEAM_TASK, {"responsible_ids": [PERSON], "priority": "low"}),
}


class House:
    """A ledger, a stand-in, and the seeker of one provider; `pass_` moves the clock of all of them."""

    def __init__(self, ledger, name):
        self.ledger = ledger
        self.name = name
        self.now = datetime.now(UTC)
        self.sandbox = Sandbox(clock=lambda: self.now).start()
        url = self.sandbox.mindhunters_url if name is ProviderName.MINDHUNTERS else self.sandbox.vambe_url
        self.provider = load(name)
        credential = MINDHUNTERS_TOKEN if name is ProviderName.MINDHUNTERS else VAMBE_API_KEY
        self.transport = HttpClient(url, self.provider.auth_headers(credential))
        self.charged = []
        self.seek = self.another()

    def another(self, **changes):
        """Return another seeker, as of another worker."""
        parts = {"clock": Clock(now=lambda: self.now, awake_seconds=lambda: 0.0), "charge": self.charge}
        return Reconciler(self.ledger, self.provider, self.transport, **(parts | changes))

    def seconds(self):
        """Return the house's clock as one that is never set."""
        return self.now.timestamp()

    def charge(self, now):
        """Take a place in line, which is free."""
        self.charged.append(now)
        return now

    def close(self):
        """Give everything back."""
        self.transport.close()
        self.sandbox.stop()

    def pass_(self, **span):
        """Let time pass."""
        self.now += timedelta(**span)

    def plan(self, id_, own=None, **changes):
        """Plan a task of this provider."""
        type_, fields = KINDS[self.name]
        key = id_.encode().hex().rjust(12, "0")[-12:] + "0" * 52
        event = Event(id=f"ev_{id_}", source="crm", type="x", occurred_at=self.now, received_at=self.now)
        delivery = Delivery(id=f"dl_{id_}", source="crm", received_at=self.now, body=b"{}", content_hash=id_)
        self.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id_, content_hash=id_)])
        task = Task(
            **{
                "id": id_,
                "key": key,
                "event_id": f"ev_{id_}",
                "rule": "r",
                "name": "n",
                "type": type_,
                "provider": self.name,
                "due_at": self.now,
                "fields": {
                    **fields,
                    **(own or {}),
                    "title": f"Title {id_}",
                    "description": f"for {id_} {correlation_tag(key)}",
                },
                "rule_set": "rs_1",
            }
            | changes
        )
        decision = Decision(rule="r", outcome=DecisionOutcome.MATCHED, reason="so", tasks=(id_,), place="a:1:1")
        plan = Plan(
            event_id=f"ev_{id_}", rule_set="rs_1", state=EventState.PROCESSED, decisions=(decision,), tasks=(task,)
        )
        self.ledger.tasks.insert([plan], self.now)

    def try_(self, id_, *, stored):
        """Make one attempt whose answer tells nothing, `stored` at the provider or not."""
        (claim,) = self.ledger.tasks.claim([id_], self.now, LEASE, "w-1")
        assert isinstance(claim, Claim), claim
        if stored:
            self.transport.send(self.provider.build_request(claim.task, self.now), deadline_seconds=5)
        lost = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="201 without an id", status=201)
        assert self.ledger.tasks.settle(claim, lost, self.now)

    def doubt(self, id_="tk_1", *, stored, **changes):
        """Leave a task in doubt whose lease has just ended."""
        self.plan(id_, **changes)
        self.try_(id_, stored=stored)
        self.pass_(seconds=60)

    def task(self, id_="tk_1"):
        """Return a task."""
        return self.ledger.queries.task(id_)

    def rounds(self, number, **span):
        """Seek so often, with so much time between."""
        for _ in range(number):
            self.seek.once()
            self.pass_(**span)

    def made(self):
        """Return how many tasks the provider has."""
        return len(self.sandbox.tasks(self.name))


@pytest.fixture(params=list(ProviderName))
def house(request, tmp_path):
    """Give a house for each provider."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    found = House(ledger, request.param)
    yield found
    found.close()
    ledger.close()


def test_what_the_provider_has_is_delivered(house, caplog):
    """Found by its mark: delivered with the provider's id, and said so once."""
    caplog.set_level(logging.INFO)
    house.doubt(stored=True)
    assert 1 == house.seek.once()
    held = house.sandbox.tasks(house.name)[0]
    assert (TaskState.DELIVERED, held.get("uuid") or held.get("id")) == (house.task().state, house.task().external_id)
    assert 1 == len([record for record in caplog.records if "tk_1" in record.message])
    assert 0 == house.seek.once()


def test_what_a_dead_worker_sent_is_not_absent_before_the_lease_ends(house):
    """Until then the request may still be executed; then it is due again at once."""
    house.doubt("tk_0", stored=True)
    house.seek.once()
    house.plan("tk_1")
    lease_ends_at = house.now + LEASE
    house.ledger.tasks.claim(["tk_1"], house.now, LEASE, "w-1")
    house.pass_(seconds=10)
    assert ["tk_1"] == house.ledger.tasks.release("w-1", house.now)
    while house.task().state is TaskState.UNKNOWN:
        house.pass_(seconds=1)
        house.seek.once()
    assert (TaskState.WAITING, lease_ends_at) == (house.task().state, house.task().due_at)


def test_what_a_dead_worker_sent_is_found_before_the_lease_ends(house):
    """What the provider shows needs no patience."""
    house.plan("tk_1")
    (claim,) = house.ledger.tasks.claim(["tk_1"], house.now, LEASE, "w-1")
    house.transport.send(house.provider.build_request(claim.task, house.now), deadline_seconds=5)
    assert ["tk_1"] == house.ledger.tasks.release("w-1", house.now)
    house.pass_(seconds=5)
    assert 1 == house.seek.once()
    assert TaskState.DELIVERED == house.task().state


def test_what_its_own_worker_settled_is_sent_again_within_thirty_seconds(house):
    """Looked up at once and 20 s after the attempt's end; absent from both listings it is due again then."""
    house.doubt("tk_0", stored=True)  # shows that the provider understands the question
    house.seek.once()
    house.plan("tk_1")
    house.try_("tk_1", stored=False)
    ended_at = house.now
    assert 1 == house.seek.once()
    house.pass_(seconds=19)
    assert 0 == house.seek.once()
    house.pass_(seconds=1)
    assert 1 == house.seek.once()
    assert (TaskState.WAITING, ended_at + timedelta(seconds=20)) == (house.task().state, house.task().due_at)


def test_what_two_listings_do_not_show_is_sent_again(house):
    """The first absence decides nothing; after the second the task is due now, its attempts count on."""
    house.doubt("tk_0", stored=True)  # shows that the provider understands the question
    house.doubt(stored=False)
    assert 2 == house.seek.once()
    assert TaskState.UNKNOWN == house.task().state
    house.pass_(seconds=9)
    assert 0 == house.seek.once()
    house.pass_(seconds=1)
    assert 1 == house.seek.once()
    task = house.task()
    assert (TaskState.WAITING, house.now, 1) == (task.state, task.due_at, task.attempts)
    assert "looked up twice" in task.reason


def test_a_task_that_is_shown_late_is_found_by_the_second_listing(house):
    """A provider that takes over a minute to show a new task does not get it twice."""
    house.doubt("tk_0", stored=True)
    house.pass_(seconds=120)
    house.seek.once()
    house.sandbox.turn({f"{house.name}.listing_delay_seconds": "65"})
    house.doubt(stored=True)
    house.seek.once()
    assert TaskState.UNKNOWN == house.task().state
    house.pass_(seconds=10)
    house.seek.once()
    assert TaskState.DELIVERED == house.task().state


def test_the_second_listing_comes_long_enough_after_the_attempts_end(house):
    """A lease that merely expired: an attempt's time and twenty seconds pass from then, whatever was listed before."""
    house.doubt("tk_0", stored=True)
    house.seek.once()
    house.plan("tk_1")
    house.ledger.tasks.claim(["tk_1"], house.now, LEASE, "w-1")
    house.pass_(seconds=61)
    assert ["tk_1"] == house.ledger.tasks.expire_leases(house.now)
    house.pass_(seconds=5)
    assert 1 == house.seek.once()
    for seconds in (24, 19):  # the first look says nothing yet, so two more come
        house.pass_(seconds=seconds)
        assert 0 == house.seek.once()
        house.pass_(seconds=1)
        assert 1 == house.seek.once()
    assert TaskState.WAITING == house.task().state


def test_a_claim_that_a_fast_clock_took_for_absent_is_not_sent_twice(house):
    """A worker that is a minute ahead gives up a live claim; its request, made half a minute later, is found."""
    house.doubt("tk_0", stored=True)
    house.seek.once()
    house.plan("tk_1")
    (claim,) = house.ledger.tasks.claim(["tk_1"], house.now, LEASE, "w-1")
    house.pass_(seconds=60)  # by the fast clock; the request has only begun
    assert ["tk_1"] == house.ledger.tasks.expire_leases(house.now)
    for _ in range(29):
        house.pass_(seconds=1)
        house.seek.once()
    house.transport.send(house.provider.build_request(claim.task, house.now), deadline_seconds=5)
    house.sandbox.turn({f"{house.name}.listing_delay_seconds": "19"})
    for _ in range(40):
        house.pass_(seconds=1)
        house.seek.once()
    assert TaskState.DELIVERED == house.task().state
    assert 2 == house.made()


@pytest.mark.parametrize("listing", ["status_500", "garbage"])
def test_a_broken_look_up_is_repeated_and_then_left_to_a_person(house, caplog, listing):
    """Four times more, ever later; then the task stays unknown with what to do, one warning says so, and nothing is sent."""
    house.sandbox.turn({f"{house.name}.listing": listing})
    house.doubt(stored=True)
    for seconds in (5, 20, 60, 300):
        assert 1 == house.seek.once()
        house.pass_(seconds=seconds - 1)
        assert 0 == house.seek.once()
        house.pass_(seconds=1)
    assert not caplog.records
    assert 1 == house.seek.once()
    task = house.task()
    assert TaskState.UNKNOWN == task.state
    assert f"leadwire settle {task.id} --delivered" in task.reason
    assert "leadwire settle tk_1 --not-delivered" in task.reason
    assert correlation_tag(task.key) in task.reason
    assert ["WARNING"] == [record.levelname for record in caplog.records]
    house.pass_(days=1)
    assert 0 == house.seek.once()
    assert 1 == house.made()


def test_a_look_up_that_works_again_decides(house):
    """A time-out or two, then the truth."""
    house.sandbox.turn({f"{house.name}.listing": "status_500"})
    house.doubt(stored=True)
    house.rounds(1, seconds=5)
    house.sandbox.turn({f"{house.name}.listing": "whole"})
    house.rounds(1)
    assert TaskState.DELIVERED == house.task().state


def test_a_wrong_credential_cannot_tell(house, caplog):
    """401 is no absence: the provider is paused, once said, and after a day of it a person is asked."""
    house.doubt(stored=True)
    house.transport.close()
    house.transport = HttpClient(house.transport._base_url, house.provider.auth_headers("sandbox-wrong-key"))
    house.seek = house.another()
    house.rounds(1)
    (state,) = house.ledger.limits.states()
    assert (PauseKind.ANSWER, house.now + timedelta(seconds=60)) == (state.kind, state.paused_until_at)
    house.rounds(9, minutes=6)
    assert (TaskState.UNKNOWN, "201 without an id") == (house.task().state, house.task().reason)
    assert ["ERROR"] == [record.levelname for record in caplog.records]
    house.pass_(days=1)
    house.rounds(5, minutes=6)
    assert "answered with 401" in house.task().reason


def outage(house, answer, times=None):
    """Have the provider answer every question so."""
    house.sandbox.script([{"provider": str(house.name), "method": "GET", "times": times, "answer": answer}])


@pytest.mark.parametrize("answer", [{"status": 503}, {"status": 429}, "hang_up_before", {"status": 403}])
def test_an_outage_of_some_hours_spends_no_look_up(house, answer):
    """It is waited for, ever less often, and the truth counts when the provider is back."""
    house.doubt(stored=True)
    outage(house, answer)
    for _ in range(60):
        house.rounds(1, minutes=6)
    assert (TaskState.UNKNOWN, "201 without an id") == (house.task().state, house.task().reason)
    assert len(house.charged) <= 120
    house.sandbox.behave()
    house.rounds(2, minutes=6)
    assert TaskState.DELIVERED == house.task().state


def test_a_look_up_waits_as_long_as_it_is_asked_to(house):
    """A Retry-After is kept in full; a 429 pauses the provider, whose tasks wait no longer than an hour for it."""
    house.doubt(stored=True)
    outage(house, {"status": 429, "headers": {"Retry-After": "7200"}}, times=1)
    house.rounds(1)
    (state,) = house.ledger.limits.states()
    assert (PauseKind.ASKED, house.now + timedelta(hours=1)) == (state.kind, state.paused_until_at)
    house.pass_(seconds=7199)
    assert 0 == house.seek.once()
    house.pass_(seconds=1)
    assert 1 == house.seek.once()
    assert TaskState.DELIVERED == house.task().state


def test_a_provider_that_takes_no_questions_is_asked_no_more(house):
    """After a 503 the other listings of the round count as asked."""
    outage(house, {"status": 503})
    for number in range(4):
        named = {"agent": f"00000000-0000-4000-8000-{number:012}", "responsible_ids": [f"u{number}"]}
        house.plan(f"tk_{number}", own={name: named[name] for name in named.keys() & KINDS[house.name][1].keys()})
        house.try_(f"tk_{number}", stored=False)
    house.pass_(seconds=60)
    assert (4, 1) == (house.seek.once(), len(house.charged))


def test_a_listing_waits_for_its_place_in_line(house):
    """What comes within the round is waited for, what comes later is kept, and nobody is charged for it again."""
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        house.pass_(seconds=seconds)

    clock = Clock(now=lambda: house.now, awake_seconds=house.seconds, sleep=sleep)
    away = [3.0, 50.0]

    def charge(now):
        house.charged.append(now)
        return now + timedelta(seconds=away.pop(0))

    house.seek = house.another(clock=clock, charge=charge)
    house.doubt("tk_1", stored=True)
    house.rounds(1)
    assert (TaskState.DELIVERED, 3.0) == (house.task("tk_1").state, pytest.approx(sum(slept)))
    house.doubt("tk_2", stored=True)
    place_at = house.now + timedelta(seconds=50)
    assert [1, 0] == [house.seek.once(), house.seek.once()]
    assert TaskState.UNKNOWN == house.task("tk_2").state
    while house.now < place_at:
        house.pass_(seconds=1)
        house.seek.once()
    house.rounds(1)
    assert (TaskState.DELIVERED, 2) == (house.task("tk_2").state, len(house.charged))


def test_a_task_retried_long_after_its_attempt_keeps_its_budget_and_its_moment(house):
    """Cancelled in doubt and retried weeks later, for tomorrow: absent twice, it waits for tomorrow and is not given up."""
    house.doubt("tk_0", stored=True)
    house.doubt(stored=False)
    house.seek.once()
    house.ledger.admin.cancel("tk_1", None, house.now)
    house.pass_(days=30)
    tomorrow_at = house.now + timedelta(days=1)
    house.ledger.admin.retry_many({"tk_1": tomorrow_at}, {TaskState.CANCELLED}, house.now)
    house.rounds(8, seconds=10)
    task = house.task()
    assert (TaskState.WAITING, tomorrow_at) == (task.state, task.due_at)


def test_a_rule_may_have_it_repeated(house):
    """`if_unsure: repeat`: when no look-up can tell, it is sent again, and the reason says why."""
    house.sandbox.turn({f"{house.name}.listing": "status_500"})
    house.doubt(stored=True, if_unsure="repeat")
    house.rounds(4, minutes=5)
    assert TaskState.UNKNOWN == house.task().state
    house.rounds(1)
    assert (TaskState.WAITING, house.now) == (house.task().state, house.task().due_at)
    assert "if_unsure: repeat" in house.task().reason


def test_a_rule_that_repeats_is_looked_up_first(house):
    """What the provider shows is not repeated."""
    house.doubt(stored=True, if_unsure="repeat")
    house.rounds(1)
    assert TaskState.DELIVERED == house.task().state


def test_when_the_tries_are_used_up_it_is_dead(house):
    """Absent after its last try: given up, with the reason."""
    house.doubt("tk_0", stored=True)
    house.doubt(stored=False, retry=RetryPolicy(max_attempts=0))
    house.rounds(2, seconds=10)
    assert TaskState.DEAD == house.task().state
    assert "gave up after 1 try" in house.task().reason


def test_an_empty_listing_of_an_untried_form_is_left_to_a_person(house):
    """Vambe that never showed anything; Mindhunters' filters are documented, so there it is an absence."""
    house.sandbox.turn({f"{house.name}.listing": "empty"})
    house.doubt(stored=True)
    house.rounds(6, minutes=5)
    wanted = TaskState.UNKNOWN if house.name is ProviderName.VAMBE else TaskState.WAITING
    assert wanted == house.task().state


def test_many_doubts_cost_few_requests(house):
    """A worker that was killed with many on their way: one listing tells of them all."""
    ids = [f"tk_{number}" for number in range(20)]
    for id_ in ids:
        house.plan(id_)
        house.try_(id_, stored=True)
    house.pass_(seconds=60)
    assert 20 == house.seek.once()
    assert 1 == len(house.charged)
    assert {TaskState.DELIVERED} == {house.task(id_).state for id_ in ids}


def test_a_provider_that_does_not_answer_is_not_asked_for_each(house):
    """After two listings without an answer whatever else is due counts as asked."""
    house.sandbox.turn({f"{house.name}.listing": "silent"})
    for number in range(8):
        named = {"agent": f"00000000-0000-4000-8000-{number:012}", "responsible_ids": [f"u{number}"]}
        house.plan(f"tk_{number}", own={name: named[name] for name in named.keys() & KINDS[house.name][1].keys()})
        house.try_(f"tk_{number}", stored=False)
    house.pass_(seconds=60)
    assert 8 == house.seek.once()
    assert len(house.charged) <= 2


def test_two_workers_never_look_up_the_same_doubt_together(house):
    """Side by side they share the work; what both know changes nothing."""
    for number in range(BATCH + 5):
        house.plan(f"tk_{number}")
        house.try_(f"tk_{number}", stored=True)
    house.pass_(seconds=60)
    seekers = [house.another() for _ in range(2)]
    done = []
    threads = [threading.Thread(target=lambda one=one: done.append(one.once())) for one in seekers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert BATCH + 5 == sum(done)
    assert {TaskState.DELIVERED} == {house.task(f"tk_{number}").state for number in range(BATCH + 5)}
    assert BATCH + 5 == house.made()


def test_what_a_dead_worker_took_is_taken_again(house):
    """A worker that dies in the middle of a look-up holds the doubt for a minute, no longer."""
    house.doubt(stored=True)
    (_,) = house.ledger.reconciliation.claim(house.name, house.now, timedelta(seconds=60), 9)
    house.pass_(seconds=59)
    assert 0 == house.seek.once()
    house.pass_(seconds=1)
    assert 1 == house.seek.once()
    assert TaskState.DELIVERED == house.task().state


def test_a_person_who_pauses_the_provider_stops_the_look_ups(house):
    """They go on with the provider."""
    house.doubt(stored=True)
    house.ledger.limits.pause(house.name, house.now + timedelta(hours=1), "maintenance", house.now)
    assert 0 == house.seek.once()
    house.ledger.limits.resume(house.name, house.now)
    assert 1 == house.seek.once()


def test_a_worker_that_ends_leaves_the_doubt(house):
    """What it has not asked is free at once for others."""
    house.doubt(stored=True)
    closing = threading.Event()
    closing.set()
    house.another(closing=closing).once()
    assert 1 == house.seek.once()
    assert TaskState.DELIVERED == house.task().state
