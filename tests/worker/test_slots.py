"""How many threads one provider may hold."""

import threading
import time

from worker.wiring import SIDE_BY_SIDE, AdaptiveBatchSize, Bulkhead, ProviderClient


def test_no_more_slots_are_taken_than_there_are():
    """Of three slots a fourth caller gets none, until one is given back."""
    slots = Bulkhead(3)
    assert [True, True, True, False] == [slots.take(0) for _ in range(4)]
    assert 0 == slots.free
    slots.give()
    assert (1, True) == (slots.free, slots.take(0))


def test_a_waiting_caller_gets_the_slot_that_comes_free():
    """Who waits for a slot is woken by the one that is given back."""
    slots = Bulkhead(1)
    slots.take(0)
    got = []
    waiting = threading.Thread(target=lambda: got.append(slots.take(10)))
    waiting.start()
    slots.give()
    waiting.join(10)
    assert ([True], 0) == (got, slots.free)


def waiting_for(slots, patience_seconds):
    """Begin to wait for a slot; return the thread and what it gets, once it waits."""
    got = []
    thread = threading.Thread(target=lambda: got.append(slots.take(patience_seconds)))
    thread.start()
    while not slots._waiting:
        pass
    return thread, got


def test_who_has_no_patience_does_not_overtake_who_waits():
    """A slot that comes free while somebody waits is theirs, though another asks before they have woken up."""
    slots = Bulkhead(1)
    slots.take(0)
    waiting, got = waiting_for(slots, 10)
    with slots._changed:  # nobody wakes up before the end of this
        slots.give()
        assert (1, False) == (slots.free, slots.take(0))
    waiting.join(10)
    assert ([True], 0) == (got, slots.free)
    assert not slots.take(0)
    slots.give()
    assert slots.take(0)


def test_who_gave_up_waiting_stands_in_nobodys_way():
    """After a wait that was in vain a slot is given to whoever asks, with patience or without."""
    slots = Bulkhead(1)
    slots.take(0)
    assert [False, False] == [slots.take(0.01) for _ in range(2)]
    slots.give()
    assert slots.take(0)
    slots.give()
    assert slots.take(1)


def test_new_work_and_old_wait_alike_for_a_quick_provider():
    """Whatever patience one has where answers are slow: of a provider that answers quickly each gets its slot in time."""
    hand = ProviderClient(
        provider=None, transport=None, slots=Bulkhead(1), pool=None, pace=AdaptiveBatchSize(size=2 * SIDE_BY_SIDE)
    )
    assert hand.take_slot(0)
    got = []
    waiting = [
        threading.Thread(target=lambda patience=patience: got.append(hand.take_slot(patience)))
        for patience in (0, 0.01)
    ]
    for each in waiting:
        each.start()
    while hand.slots._waiting < 2:
        pass
    time.sleep(0.1)
    hand.slots.give()
    while not got:
        time.sleep(0.01)
    hand.slots.give()
    for each in waiting:
        each.join(10)
    assert [True, True] == got
    hand.pace.reset()
    assert (False, False) == (hand.take_slot(0), hand.take_slot(0.01))
