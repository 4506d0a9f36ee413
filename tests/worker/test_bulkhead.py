"""How many threads one provider may hold."""

import threading
import time

from worker.context import CONCURRENT_REQUESTS, AdaptiveBatchSize, Bulkhead, ProviderClient


def test_no_more_slots_are_taken_than_there_are():
    """Of three bulkhead a fourth caller gets none, until one is given back."""
    bulkhead = Bulkhead(3)
    assert [True, True, True, False] == [bulkhead.acquire(0) for _ in range(4)]
    assert 0 == bulkhead.free
    bulkhead.release()
    assert (1, True) == (bulkhead.free, bulkhead.acquire(0))


def test_a_waiting_caller_gets_the_slot_that_comes_free():
    """Who waits for a slot is woken by the one that is given back."""
    bulkhead = Bulkhead(1)
    bulkhead.acquire(0)
    got = []
    waiting = threading.Thread(target=lambda: got.append(bulkhead.acquire(10)))
    waiting.start()
    bulkhead.release()
    waiting.join(10)
    assert ([True], 0) == (got, bulkhead.free)


def waiting_for(bulkhead, patience_seconds):
    """Begin to wait for a slot; return the thread and what it gets, once it waits."""
    got = []
    thread = threading.Thread(target=lambda: got.append(bulkhead.acquire(patience_seconds)))
    thread.start()
    while not bulkhead._waiting:
        pass
    return thread, got


def test_who_has_no_patience_does_not_overtake_who_waits():
    """A slot that comes free while somebody waits is theirs, though another asks before they have woken up."""
    bulkhead = Bulkhead(1)
    bulkhead.acquire(0)
    waiting, got = waiting_for(bulkhead, 10)
    with bulkhead._changed:  # nobody wakes up before the end of this
        bulkhead.release()
        assert (1, False) == (bulkhead.free, bulkhead.acquire(0))
    waiting.join(10)
    assert ([True], 0) == (got, bulkhead.free)
    assert not bulkhead.acquire(0)
    bulkhead.release()
    assert bulkhead.acquire(0)


def test_who_gave_up_waiting_stands_in_nobodys_way():
    """After a wait that was in vain a slot is given to whoever asks, with patience or without."""
    bulkhead = Bulkhead(1)
    bulkhead.acquire(0)
    assert [False, False] == [bulkhead.acquire(0.01) for _ in range(2)]
    bulkhead.release()
    assert bulkhead.acquire(0)
    bulkhead.release()
    assert bulkhead.acquire(1)


def test_new_work_and_old_wait_alike_for_a_quick_provider():
    """Whatever patience one has where answers are slow: of a provider that answers quickly each gets its slot in time."""
    client = ProviderClient(
        provider=None,
        transport=None,
        bulkhead=Bulkhead(1),
        pool=None,
        batch_size=AdaptiveBatchSize(size=2 * CONCURRENT_REQUESTS),
    )
    assert client.acquire(0)
    got = []
    waiting = [
        threading.Thread(target=lambda patience=patience: got.append(client.acquire(patience)))
        for patience in (0, 0.01)
    ]
    for each in waiting:
        each.start()
    while client.bulkhead._waiting < 2:
        pass
    time.sleep(0.1)
    client.bulkhead.release()
    while not got:
        time.sleep(0.01)
    client.bulkhead.release()
    for each in waiting:
        each.join(10)
    assert [True, True] == got
    client.batch_size.reset()
    assert (False, False) == (client.acquire(0), client.acquire(0.01))
