from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from rules.vocabulary import Contact, EventState, Subject
from worker.ledger import Recorded


def states(bench):
    """What the ledger holds, oldest first."""
    return [(event.id, event.state) for event in reversed(list(bench.ledger.queries.list_events()))]


def test_new_events_are_returned_in_order(bench):
    """A delivery with three new events returns their ids in the order they came."""
    recorded = bench.record(bench.incoming("ev_c"), bench.incoming("ev_a"), bench.incoming("ev_b"))
    assert Recorded(event_ids=("ev_c", "ev_a", "ev_b"), duplicates=0, conflicts=0) == recorded


def test_everything_said_about_an_event_comes_back(bench):
    """An event is read back exactly as it was recorded, to the microsecond."""
    event = bench.event(
        occurred_at=bench.at(-3600.5),
        subject=Subject(kind="lead", id="77"),
        contact=Contact(phone="+56911112222", name="Añá", consent={"ai_call": True}),
        changed={"stage": {"from": "new", "to": "won"}},
        attempt=3,
        data={"deep": {"list": [1, 2.5, None, True, "x"]}},
    )
    bench.record(bench.incoming(event=event))
    assert event == bench.ledger.queries.event("ev_1").event


def test_delivery_headers_and_body_come_back(bench):
    """The raw body and the headers of a delivery can be read through any of its events."""
    bench.record(bench.incoming(), body=b"\x00\xffraw", headers={"x-id": "7"})
    assert {"x-id": "7"} == bench.ledger.queries.event("ev_1").headers
    assert b"\x00\xffraw" == bench.ledger.queries.delivery_body("ev_1")
    assert bench.ledger.queries.delivery_body("ev_9") is None


def test_new_event_counts_as_dispatched_once(bench):
    """The ingress publishes right after recording, so a new event stands as dispatched at its arrival."""
    bench.record(bench.incoming())
    event = bench.ledger.queries.event("ev_1")
    assert (1, bench.now, bench.now, 0) == (event.dispatches, event.dispatched_at, event.due_at, event.tries)


def test_redelivery_changes_nothing(bench):
    """The same key with the same content, under new ids, leaves the ledger as it was, delivery included."""
    bench.record(bench.incoming("ev_1", key="k"))
    recorded = bench.record(bench.incoming("ev_2", key="k"))
    assert Recorded(event_ids=(), duplicates=1, conflicts=0) == recorded
    assert [("ev_1", EventState.RECEIVED)] == states(bench)
    assert bench.ledger.queries.delivery_body("ev_2") is None


def test_same_key_of_another_source_or_type_is_another_event(bench):
    """Identity is source, type and key together."""
    bench.record(bench.incoming("ev_1", key="k"))
    other_source = bench.incoming(event=bench.event("ev_2", source="erp"), key="k")
    other_type = bench.incoming(event=bench.event("ev_3", type="lead.updated"), key="k")
    assert ("ev_2", "ev_3") == bench.record(other_source, other_type).event_ids


def test_other_content_under_a_key_is_kept_as_ignored(bench):
    """The same key with other content is kept, is not to be processed, and names the event that came first."""
    bench.record(bench.incoming("ev_1", key="k", content="c1"))
    recorded = bench.record(bench.incoming("ev_2", key="k", content="c2"))
    assert Recorded(event_ids=(), duplicates=0, conflicts=1) == recorded
    kept = bench.ledger.queries.event("ev_2")
    assert EventState.IGNORED == kept.state
    assert "ev_1" in kept.reason
    assert [] == bench.ledger.inbox.events_to_process(["ev_2"], bench.now)


def test_a_third_copy_of_other_content_adds_nothing(bench):
    """Contradicting content is kept once, however often it comes; a further content is kept beside it."""
    for number, content in enumerate(["c1", "c2", "c2", "c1", "c3", "c2"]):
        bench.record(bench.incoming(f"ev_{number}", key="k", content=content))
    assert [
        ("ev_0", EventState.RECEIVED),
        ("ev_1", EventState.IGNORED),
        ("ev_4", EventState.IGNORED),
    ] == states(bench)


def test_identical_items_in_one_delivery_are_one_event(bench):
    """Two identical items of one delivery become one event."""
    recorded = bench.record(bench.incoming("ev_1", key="k"), bench.incoming("ev_2", key="k"), bench.incoming("ev_3"))
    assert Recorded(event_ids=("ev_1", "ev_3"), duplicates=1, conflicts=0) == recorded


def test_contradicting_items_in_one_delivery(bench):
    """Of two items with one key and different contents the first is the event, the other is ignored."""
    recorded = bench.record(bench.incoming("ev_1", key="k"), bench.incoming("ev_2", key="k", content="c2"))
    assert Recorded(event_ids=("ev_1",), duplicates=0, conflicts=1) == recorded
    assert [("ev_1", EventState.RECEIVED), ("ev_2", EventState.IGNORED)] == states(bench)


def test_a_batch_with_old_and_new_items_keeps_the_new_ones(bench):
    """A delivery that repeats some events and brings others is stored, with the others."""
    bench.record(bench.incoming("ev_1"))
    recorded = bench.record(bench.incoming("ev_9", key="ev_1"), bench.incoming("ev_2"), id="dl_second")
    assert Recorded(event_ids=("ev_2",), duplicates=1, conflicts=0) == recorded
    assert "dl_second" == bench.ledger.queries.event("ev_2").delivery_id


@pytest.mark.parametrize(("seconds", "expected"), [(599, ()), (600, ("ev_2",)), (601, ("ev_2",))])
def test_a_key_with_an_end_is_forgotten_then(bench, seconds, expected):
    """A key kept for ten minutes makes a redelivery a duplicate before, and a new event from then on."""
    bench.record(bench.incoming("ev_1", key="k", until_at=bench.at(600)))
    later = bench.incoming("ev_2", key="k", until_at=bench.at(seconds + 600))
    assert expected == bench.record(later, received_at=bench.at(seconds)).event_ids


def test_a_key_taken_again_holds_again(bench):
    """After a forgotten key was taken by a new event, that event is the one that repetitions are compared with."""
    bench.record(bench.incoming("ev_1", key="k", until_at=bench.at(600)))
    bench.record(bench.incoming("ev_2", key="k", until_at=bench.at(1200)), received_at=bench.at(600))
    third = bench.record(bench.incoming("ev_3", key="k", content="c2"), received_at=bench.at(700))
    assert 1 == third.conflicts
    assert "ev_2" in bench.ledger.queries.event("ev_3").reason


def test_a_key_without_an_end_is_kept_for_ever(bench):
    """A key from the sender's own id is remembered years later."""
    bench.record(bench.incoming("ev_1", key="k"))
    years = timedelta(days=3650)
    assert 1 == bench.record(bench.incoming("ev_2", key="k"), received_at=bench.now + years).duplicates


def test_delivery_without_events_is_stored(bench):
    """A verified delivery that held no event is no error, and may come again."""
    assert Recorded(event_ids=(), duplicates=0, conflicts=0) == bench.record()
    assert Recorded(event_ids=(), duplicates=0, conflicts=0) == bench.record()


def test_unreadable_items_are_kept_with_their_reason(bench):
    """An item nobody can read is stored with the reason and is not to be processed; its neighbour is."""
    unreadable = bench.incoming("ev_2", state=EventState.UNREADABLE, reason="no type at event.type")
    assert ("ev_1",) == bench.record(bench.incoming("ev_1"), unreadable).event_ids
    kept = bench.ledger.queries.event("ev_2")
    assert (EventState.UNREADABLE, "no type at event.type") == (kept.state, kept.reason)
    assert [] == bench.ledger.inbox.events_to_process(["ev_2"], bench.now)


def nested(levels):
    """Lists in lists, as deep as asked."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = {
    "lone surrogates": {"a\ud800": "b\udfff"},
    "NUL characters": {"\x00": "\x00\x01"},
    "a huge integer": {"n": 10**4000, "m": -(2**64)},
    "an integer beyond Python's own text limit": {"n": 10**5000},
    "NaN and infinities": {"n": float("nan"), "m": [float("inf"), -float("inf")]},
    "900 levels": nested(900),
    "100,000 levels": nested(100_000),
    "text": "\ud83d alone",
    "nothing": None,
    "numbers as keys": {1: "a", None: "b"},
    "things that are no JSON": {"a": {1, 2}, "b": object},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_data_is_recorded_and_read_back(bench, data):
    """Whatever a payload held, its event is recorded, and can be read and listed."""
    assert ("ev_1",) == bench.record(bench.incoming(event=bench.event(data=data))).event_ids
    (processed,) = bench.ledger.inbox.events_to_process(["ev_1"], bench.now)
    (listed,) = bench.ledger.queries.list_events()
    assert processed.event == listed.event
    json.dumps(listed.event.data)


def test_data_that_json_can_hold_is_unchanged(bench):
    """Surrogates, NUL and integers of thousands of digits come back as they were; NaN becomes null."""
    data = {"a\ud800": "b\x00", "n": 10**4000, "nan": float("nan")}
    bench.record(bench.incoming(event=bench.event(data=data)))
    assert {"a\ud800": "b\x00", "n": 10**4000} | {"nan": None} == bench.ledger.queries.event("ev_1").event.data


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "x" * 100_000, "a\x1fb", "\U0001f600", ""])
def test_hostile_identities_are_recorded_and_recognised(bench, odd):
    """Odd types and keys are stored, recognised when they come again, and told from similar ones."""
    event = bench.event(type=odd, contact=Contact(id=odd, phone=odd), subject=Subject(kind=odd, id=odd), attempt=10**30)
    first = bench.incoming(event=event, key=odd, reason=odd)
    assert 0 == bench.record(first, headers={odd: odd}).duplicates
    assert 1 == bench.record(bench.incoming(event=event, key=odd), id="dl_2").duplicates
    assert 10**30 == bench.ledger.queries.event("ev_1").event.attempt


def test_the_longest_identities_fit_into_every_index(bench):
    """Source, type and key of 255 characters that take four bytes each, also under a contradiction's longer key."""
    longest = "".join(chr(0x1F300 + number) for number in range(255))
    event = bench.event(source="crm" * 10, type=longest)
    bench.record(bench.incoming(event=event, key=longest))
    again = bench.event("ev_2", source="crm" * 10, type=longest)
    recorded = bench.record(bench.incoming("ev_2", event=again, key=longest, content="f" * 64))
    assert 1 == recorded.conflicts


def test_moments_at_the_edge_of_the_calendar(bench):
    """A moment that UTC has no date for is recorded as the nearest one, and the event can be read and listed."""
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    late = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=12)))
    for number, moment in enumerate((early, late)):
        event = bench.event(f"ev_{number}", occurred_at=moment)
        bench.record(bench.incoming(f"ev_{number}", event=event, until_at=late))
    first, second = (bench.ledger.queries.event(f"ev_{number}").event.occurred_at for number in range(2))
    assert (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)) == (first, second)


def test_keys_that_differ_only_in_what_is_cut_or_replaced_stay_different(bench):
    """Sanitising never makes two identities one."""
    keys = ["x" * 300 + "a", "x" * 300 + "b", "k\x00", "k\ud800", "k\ufffd"]
    incoming = [bench.incoming(f"ev_{number}", key=key) for number, key in enumerate(keys)]
    assert len(keys) == len(bench.record(*incoming).event_ids)


def test_a_hundred_events_in_one_delivery(bench):
    """One POST may carry a hundred events."""
    incoming = [bench.incoming(f"ev_{number}") for number in range(100)]
    assert 100 == len(bench.record(*incoming).event_ids)
    assert 100 == bench.record(*incoming, id="dl_again").duplicates
