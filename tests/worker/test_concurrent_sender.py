"""Attempts made side by side: each claim is answered once, and only whoever answers it may have sent it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rules.vocabulary import Verdict
from worker import delivery
from worker.context import CONCURRENT_REQUESTS
from worker.delivery import AttemptResult, ConcurrentSender
from worker.providers import Interpretation

DONE = AttemptResult(reading=Interpretation(verdict=Verdict.DELIVERED))


class AdminQueries:
    """Claims by number, a pool of threads, and what was sent; `act` is what an attempt does."""

    def __init__(self, monkeypatch, act):
        self.pool = ThreadPoolExecutor(CONCURRENT_REQUESTS)
        self.sent = []
        self._lock = threading.Lock()
        self._act = act
        monkeypatch.setattr(delivery, "make_attempt", self._attempt)

    def _attempt(self, _context, _client, claim, _claimed_seconds):
        with self._lock:
            self.sent.append(claim.task.id)
        return self._act(claim.task.id)

    def of(self, number):
        """Return attempts at so many claims."""
        client = SimpleNamespace(pool=self.pool, provider=SimpleNamespace(name="vambe"))
        return ConcurrentSender(
            None, client, [SimpleNamespace(task=SimpleNamespace(id=each)) for each in range(number)], 0.0
        )

    def close(self):
        """Let the threads go."""
        self.pool.shutdown()


@pytest.fixture
def desk(monkeypatch):
    """Give what makes a desk whose attempts do this."""
    made = []

    def make(act=lambda _: DONE):
        made.append(AdminQueries(monkeypatch, act))
        return made[-1]

    yield make
    for each in made:
        each.close()


def answers(attempts):
    """Return what each claim came to, by its number, and how often it was answered."""
    pairs = [(claim.task.id, made) for group in attempts.results() for claim, made in group]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize("number", [0, 1, CONCURRENT_REQUESTS, 100])
def test_every_claim_is_answered_once(desk, number):
    """However many there are, all are sent, and none twice."""
    table = desk()
    assert dict.fromkeys(range(number), DONE) == answers(table.of(number))
    assert list(range(number)) == sorted(table.sent)


def test_a_fault_concerns_one_claim(desk):
    """What nobody foresaw in an attempt leaves it open what became of that one; the others go on."""

    def act(number):
        if number == 3:
            raise ValueError("a fault")
        return DONE

    made = answers(desk(act).of(20))
    assert (Verdict.UNKNOWN, 19) == (made.pop(3).reading.verdict, sum(each is DONE for each in made.values()))


def test_a_thread_that_ends_leaves_no_claim_unanswered(desk):
    """Each of the threads meets an end of its own: what it was sending is in doubt, what nobody took never began."""

    def act(_):
        raise SystemExit

    made = answers(desk(act).of(20))
    assert CONCURRENT_REQUESTS == sum(each is not None for each in made.values())
    assert {Verdict.UNKNOWN} == {each.reading.verdict for each in made.values() if each is not None}
    assert 20 == len(made)


@pytest.mark.parametrize("threads", [0, 1])
def test_without_a_further_thread_nothing_is_sent_that_was_given_back(desk, threads):
    """The pool keeps what it had no thread for, and does it when it has one: by then nobody may send these claims."""
    table = desk()
    begin, begun = table.pool._adjust_thread_count, []

    def adjust():
        if len(begun) >= threads:
            raise RuntimeError("can't start new thread")
        begun.append(begin())

    table.pool._adjust_thread_count = adjust
    made = answers(table.of(20))
    table.pool._adjust_thread_count = begin
    table.pool.submit(int).result(10)
    table.close()
    assert sorted(table.sent) == sorted(number for number, each in made.items() if each is DONE)
    assert (20, 20 if threads else 0) == (len(made), len(table.sent))


def test_what_is_stopped_is_answered_and_not_sent(desk):
    """After a stop no attempt begins; those under way end as they do."""
    under_way, go_on = threading.Semaphore(0), threading.Event()

    def act(_):
        under_way.release()
        go_on.wait(10)
        return DONE

    table = desk(act)
    attempts, made = table.of(20), {}
    whole = threading.Thread(target=lambda: made.update(answers(attempts)))
    whole.start()
    for _ in range(CONCURRENT_REQUESTS):
        under_way.acquire()
    attempts.stop()
    go_on.set()
    whole.join(10)
    assert {number: DONE if number in table.sent else None for number in range(20)} == made
    assert CONCURRENT_REQUESTS == len(table.sent)


def test_a_pool_that_ends_gives_back_what_it_never_began(desk):
    """Work that is cancelled with its pool was not begun."""
    release = threading.Event()
    table = desk()
    for _ in range(CONCURRENT_REQUESTS):
        table.pool.submit(release.wait, 10)
    made = {}
    whole = threading.Thread(target=lambda: made.update(answers(table.of(5))))
    whole.start()
    while table.pool._work_queue.qsize() < 5:
        pass
    table.pool.shutdown(wait=False, cancel_futures=True)
    release.set()
    whole.join(10)
    assert (dict.fromkeys(range(5)), []) == (made, table.sent)
