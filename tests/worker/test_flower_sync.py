"""What Flower is told again out of the ledger."""

import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest

from rules.vocabulary import (
    Contact,
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
from worker.clock import utc_now
from worker.delivery import DeliveryOutcome
from worker.flower_events import AGE_LIMIT, FlowerEvents, FlowerSync
from worker.ledger import Delivery, IncomingEvent, Settlement, migrate, open_ledger

LEASE = timedelta(seconds=60)
REFUSED = {"verdict": Verdict.REFUSED, "status": 422, "reason": "422: Ana wants peace"}
BUSY = {"verdict": Verdict.BUSY, "status": 503, "reason": "503: ask Ana"}


class AdminQueries:
    """A ledger, and what was told of it: `told` maps ids to the last event of each, in the order of the telling."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.told = {}
        self.together = []
        self.flower_sync = FlowerSync(ledger, FlowerEvents(lambda: self), threading.Event())

    def send(self, type_, **fields):
        """Take down an event."""
        if type_ == "task-delivered":
            self.together += fields["uuids"]
        else:
            self.told[fields["uuid"]] = (type_, fields["result"])

    def plan(self, *ids, due_in=timedelta(0), now=None, **changes):
        """Plan calls of one event."""
        now = now or utc_now()
        event_id = f"ev_of_{ids[0]}"
        event = Event(id=event_id, source="crm", type="lead.created", occurred_at=now, received_at=now)
        delivery = Delivery(id=f"dl_{event_id}", source="crm", received_at=now, body=b"{}", content_hash=event_id)
        self.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=event_id, content_hash=event_id)])
        parts = {
            "event_id": event_id,
            "rule": "big-lead",
            "type": TaskType.MAKE_CALL,
            "provider": ProviderName.MINDHUNTERS,
            "due_at": now + due_in,
            "fields": {"title": "Call Ana"},
            "contact": Contact(name="Ana", phone="+56911112222"),
            "rule_set": "rs_1",
        }
        tasks = [Task(**({"id": id_, "key": id_, "name": id_} | parts | changes)) for id_ in ids]
        outcome = DecisionOutcome.MATCHED
        decision = Decision(rule="big-lead", outcome=outcome, reason="it holds", tasks=ids, place="a.yaml:1:1")
        plan = Plan(event_id=event_id, rule_set="rs_1", state=EventState.PROCESSED, decisions=(decision,), tasks=tasks)
        self.ledger.tasks.insert([plan], now)

    def claim(self, id_, owner="w-1", now=None):
        """Claim a task."""
        (claim,) = self.ledger.tasks.claim([id_], now or utc_now(), LEASE, owner)
        return claim

    def make(self, id_, state, *, now=None, due_at=None, **settled):
        """Plan a task, claim it and settle it so."""
        self.plan(id_, now=now)
        claim = self.claim(id_, now=now)
        assert self.ledger.tasks.settle(claim, Settlement(state=state, due_at=due_at, **settled), now or utc_now())


@pytest.fixture
def desk(tmp_path):
    """Give a desk with an empty ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    yield AdminQueries(ledger)
    ledger.close()


def test_everything_that_stands_is_told(desk):
    """What died, waits, is in doubt or was too late, with its cause; what was delivered only ends rows."""
    in_an_hour = utc_now() + timedelta(hours=1)
    desk.make("tk_dead", TaskState.DEAD, **REFUSED)
    desk.make("tk_waits", TaskState.WAITING, due_at=in_an_hour, **BUSY)
    desk.make("tk_unknown", TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.make("tk_fine", TaskState.DELIVERED, verdict=Verdict.DELIVERED, status=201, external_id="x")
    desk.plan("tk_phoneless", state=TaskState.DEAD, reason="no phone: the contact has no phone number")
    desk.plan("tk_late", state=TaskState.SUPPRESSED, reason="too late: it expired at")
    desk.plan(
        "tk_undone", state=TaskState.SUPPRESSED, reason="not wanted any more: the failure of task tk_1 was undone"
    )
    desk.plan("tk_later", due_in=timedelta(hours=1))

    desk.flower_sync.send_latest()

    assert ["tk_fine"] == desk.together
    assert "task-retried" == desk.told.pop("tk_waits")[0]
    assert "task-retried" == desk.told.pop("tk_later")[0]
    assert {
        "tk_dead": ("task-failed", "dead: refused 422, it did not take the fields"),
        "tk_unknown": ("task-failed", "unknown, no answer: may have been executed"),
        "tk_phoneless": (
            "task-failed",
            "dead: the contact has no phone number; see: leadwire show tk_phoneless",
        ),
        "tk_late": ("task-revoked", "suppressed: too late: it expired before it could be made"),
        "tk_undone": (
            "task-revoked",
            "suppressed: what it answers was undone; see: leadwire show tk_undone",
        ),
    } == desk.told


def test_what_is_about_to_be_sent_is_left_alone(desk):
    """Its message tells more, and may be done before the telling arrives; so is what is being sent."""
    desk.plan("tk_due", "tk_sending")
    desk.claim("tk_sending")
    desk.make("tk_soon", TaskState.WAITING, due_at=utc_now() + timedelta(seconds=3), **BUSY)
    desk.flower_sync.send_latest()
    assert {} == desk.told


def test_what_is_old_is_left_to_the_command_line(desk):
    """What has not changed for a day is not told."""
    desk.make("tk_old", TaskState.DEAD, now=utc_now() - AGE_LIMIT - timedelta(minutes=1), **REFUSED)
    desk.flower_sync.send_latest()
    assert {} == desk.told


def test_the_doubts_a_dead_worker_leaves_are_told_once(desk):
    """What the supervisor or a sweep gave up is told within seconds, and not every few seconds again."""
    desk.plan("tk_1")
    desk.claim("tk_1", owner="dead-1")
    desk.flower_sync.send_unknown()
    assert {} == desk.told
    assert ["tk_1"] == desk.ledger.tasks.release("dead-", utc_now())
    desk.flower_sync.send_unknown()
    assert {"tk_1": ("task-failed", "unknown, no answer: may have been executed")} == desk.told
    desk.told.clear()
    desk.flower_sync.send_unknown()
    assert {} == desk.told


def test_a_doubt_that_is_ended_at_once_is_told(desk):
    """A worker that showed a doubt itself knows of it, though it is settled before the next look."""
    desk.make("tk_1", TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.flower_sync.note([DeliveryOutcome(task_id="tk_1", state=TaskState.UNKNOWN, words="unknown")])
    desk.ledger.admin.settle("tk_1", True, "x", utc_now())
    desk.flower_sync.send_unknown()
    assert (["tk_1"], {}) == (desk.together, desk.told)


def test_the_end_of_a_doubt_is_told(desk):
    """A person says that it was delivered; one that was not is about to be sent, and its message tells the rest."""
    for id_ in ("tk_1", "tk_2"):
        desk.make(id_, TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.flower_sync.send_unknown()
    desk.told.clear()
    desk.ledger.admin.settle("tk_1", True, "x", utc_now())
    desk.ledger.admin.settle("tk_2", False, None, utc_now())
    desk.flower_sync.send_unknown()
    assert (["tk_1"], {}) == (desk.together, desk.told)


def look_up(desk, **settlement):
    """End the only doubt as a look-up does."""
    now = utc_now() + timedelta(minutes=2)
    (doubt,) = desk.ledger.reconciliation.claim(ProviderName.MINDHUNTERS, now, LEASE, 9)
    assert desk.ledger.reconciliation.resolve(doubt, Settlement(verdict=Verdict.UNKNOWN, **settlement), now)


def test_a_doubt_that_a_look_up_ended_is_told(desk):
    """Found at the provider: delivered, after a doubt."""
    desk.make("tk_1", TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.flower_sync.send_unknown()
    desk.told.clear()
    look_up(desk, state=TaskState.DELIVERED, external_id="x", reason="found")
    desk.flower_sync.send_unknown()
    assert (["tk_1"], {}) == (desk.together, desk.told)


def test_a_doubt_that_ends_in_death_is_told(desk):
    """Absent after its last try: dead, and not "may have been executed" any more."""
    desk.make("tk_1", TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.flower_sync.send_unknown()
    desk.told.clear()
    look_up(desk, state=TaskState.DEAD, reason="gave up")
    desk.flower_sync.send_unknown()
    assert {"tk_1": ("task-failed", "dead: its provider does not have it; given up after attempt 1")} == desk.told


def test_what_stays_in_doubt_is_not_told_again(desk):
    """Left to a person, it shows as it did."""
    desk.make("tk_1", TaskState.UNKNOWN, verdict=Verdict.UNKNOWN)
    desk.flower_sync.send_unknown()
    desk.told.clear()
    look_up(desk, state=TaskState.UNKNOWN, reason="a person decides")
    desk.flower_sync.send_unknown()
    assert ([], {}) == (desk.together, desk.told)


def test_nothing_of_the_person_is_told(desk):
    """Neither the contact nor the provider's own words."""
    desk.make("tk_dead", TaskState.DEAD, **REFUSED)
    sent = []
    dispatcher = SimpleNamespace(send=lambda *parts, **fields: sent.append((parts, fields)))
    FlowerSync(desk.ledger, FlowerEvents(lambda: dispatcher), threading.Event()).send_latest()
    assert sent
    assert not [word for word in ("Ana", "911112222", "peace") if word in str(sent)]
