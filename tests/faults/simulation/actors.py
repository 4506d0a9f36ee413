"""Who runs when: one actor at a time, chosen by the seed, on a clock that moves only when everybody waits.

Production code is written for threads, so every actor is one; but a baton goes round, and only its holder runs. Each time
an actor gives way the seed says who is next. So a run is a pure function of its seed.
"""

from __future__ import annotations

import heapq
import math
import os
import threading
from contextlib import contextmanager

#: An actor that never comes to rest would run for ever; no honest run needs a tenth of this.
STEP_LIMIT = 200_000


class Died(BaseException):
    """Ends an actor where it stands; a `BaseException`, so that nothing of ours takes it for a fault and goes on."""


class Actor:
    """One thread of one simulated process, `group` the process; `ready_at` is when it may go on."""

    __slots__ = ("act", "dead", "done", "frozen_until", "group", "name", "ready_at", "thread", "turn")

    def __init__(self, name, group=None, act=None):
        self.name = name
        self.group = group
        self.act = act
        self.turn = threading.Lock()
        self.turn.acquire()
        self.ready_at = 0.0
        self.frozen_until = 0.0
        self.dead = False
        self.done = False
        self.thread = None


class Scheduler:
    """Hands the baton round. Its maker is an actor too, and the only one that may end the others."""

    def __init__(self, draw):
        self.draw = draw
        self.now = 0.0
        self.steps = 0
        self.main = Actor("world")
        self.current = self.main
        self._actors = [self.main]
        self._timeline = []
        self._made = 0
        #: What was raised by whom that was no death.
        self.faults = []

    def spawn(self, name, group, act):
        """Have `act()` run as a thread of a process, from the next time somebody gives way."""
        actor = Actor(name, group, act)
        actor.ready_at = self.now
        actor.thread = threading.Thread(target=self._body, args=(actor,), name=name, daemon=True)
        self._actors.append(actor)
        actor.thread.start()
        return actor

    def at(self, seconds, act):
        """Have something happen at a moment by itself; it must not give way."""
        self._made += 1
        heapq.heappush(self._timeline, (seconds, self._made, act))

    def pause(self):
        """Give way; raises Died when this actor's process was killed meanwhile."""
        self._give_way(self.now)

    def sleep(self, seconds):
        """Give way for so long at the least."""
        self._give_way(self.now + max(0.0, seconds))

    def wait(self):
        """Give way until somebody calls `wake`."""
        self._give_way(math.inf)

    def wake(self, actor):
        """Let an actor go on that waits."""
        actor.ready_at = max(self.now, actor.frozen_until)

    def freeze(self, group, seconds):
        """Keep a process from running for so long; time goes on for it too."""
        for actor in self._of(group):
            actor.frozen_until = self.now + seconds
            actor.ready_at = max(actor.ready_at, actor.frozen_until)

    def kill(self, group):
        """End a process: each of its threads at the step where it gave way. For the maker only."""
        for actor in self._of(group):
            actor.dead = True
            self._hand_over(actor)
            self.main.turn.acquire()
            self.current = self.main
            actor.thread.join()
            self._actors.remove(actor)

    def close(self):
        """End everybody."""
        everybody = [actor for actor in self._actors if actor is not self.main]
        for group in dict.fromkeys(actor.group for actor in everybody):
            self.kill(group)

    def _of(self, group):
        return [actor for actor in self._actors if actor.group == group and actor is not self.main and not actor.done]

    def _body(self, actor):
        actor.turn.acquire()
        try:
            if not actor.dead:
                actor.act()
        except Died:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever looks at the run is told
            self.faults.append(f"{actor.name}: {type(error).__name__}: {error}")
        actor.done = True
        if actor.dead:
            self.main.turn.release()
            return
        self._actors.remove(actor)
        self._hand_over(self._choose())

    def _give_way(self, ready_at):
        me = self.current
        if me.dead:
            raise Died
        me.ready_at = max(ready_at, me.frozen_until)
        chosen = self._choose()
        if chosen is me:
            return
        self._hand_over(chosen)
        me.turn.acquire()
        if me.dead:
            raise Died

    def _hand_over(self, actor):
        self.current = actor
        actor.turn.release()

    def _choose(self):
        """Return who is next; moves the clock when nobody is ready now."""
        self.steps += 1
        if self.steps > STEP_LIMIT:
            return self.main
        while True:
            while self._timeline and self._timeline[0][0] <= self.now:
                heapq.heappop(self._timeline)[2]()
            ready = [actor for actor in self._actors if actor.ready_at <= self.now]
            if ready:
                return ready[0] if len(ready) == 1 else ready[int(self.draw.random() * len(ready))]
            self.now = min(actor.ready_at for actor in self._actors)
            if self._timeline:
                self.now = min(self.now, self._timeline[0][0])


@contextmanager
def on_one_core():
    """Stay on one core meanwhile: of these threads one runs at a time, and the baton goes round faster so."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
