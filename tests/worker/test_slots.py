"""How many threads one provider may hold."""

import threading

from worker.wiring import Slots


def test_no_more_slots_are_taken_than_there_are():
    """Of three slots a fourth caller gets none, until one is given back."""
    slots = Slots(3)
    assert [True, True, True, False] == [slots.take(0) for _ in range(4)]
    assert 0 == slots.free
    slots.give()
    assert (1, True) == (slots.free, slots.take(0))


def test_a_waiting_caller_gets_the_slot_that_comes_free():
    """Who waits for a slot is woken by the one that is given back."""
    slots = Slots(1)
    slots.take(0)
    got = []
    waiting = threading.Thread(target=lambda: got.append(slots.take(10)))
    waiting.start()
    slots.give()
    waiting.join(10)
    assert ([True], 0) == (got, slots.free)
