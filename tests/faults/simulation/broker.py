"""A broker that may do whatever a broker does: lose messages, double them, mix their order, forget all, be out of reach."""

from __future__ import annotations

from worker.broker import EVENTS_QUEUE, QUEUE_OF, QUEUES
from worker.publisher import MESSAGE_EXPIRES_SECONDS


class Broker:
    """The queues; `loss` and `doubling` are chances per message, `reachable` whether anybody can speak to it."""

    def __init__(self, scheduler, draw):
        self._scheduler = scheduler
        self._draw = draw
        self._queues = {name: [] for name in QUEUES}
        self._waiting = []
        self.reachable = True
        self.loss = 0.0
        self.doubling = 0.0
        self.mixing = 0.0

    def publish(self, queue, ids, expires_seconds=None):
        """Take a message, as far as it goes."""
        if not self.reachable:
            return
        expires_at = None if expires_seconds is None else self._scheduler.now + expires_seconds
        for _ in range(2 if self._draw.random() < self.doubling else 1):
            if self._draw.random() < self.loss:
                continue
            messages = self._queues[queue]
            place = len(messages)
            if messages and self._draw.random() < self.mixing:
                place = self._draw.randrange(place + 1)
            messages.insert(place, (tuple(ids), expires_at))
        for actor in self._waiting:
            self._scheduler.wake(actor)
        self._waiting = []

    def take(self):
        """Return a queue's name and the ids of its next message; waits for one."""
        while True:
            filled = [name for name, messages in self._queues.items() if messages]
            if self.reachable and filled:
                name = self._draw.choice(filled)
                ids, expires_at = self._queues[name].pop(0)
                if expires_at is None or self._scheduler.now < expires_at:
                    return name, ids
                continue
            me = self._scheduler.current
            if me not in self._waiting:
                self._waiting.append(me)
            self._scheduler.wait()

    def back(self):
        """Be in reach again."""
        self.reachable = True
        for actor in self._waiting:
            self._scheduler.wake(actor)
        self._waiting = []

    def forget(self):
        """Lose everything that waits."""
        for messages in self._queues.values():
            messages.clear()

    def forget_waiting(self, group):
        """Wait no more for actors of a process that was killed."""
        self._waiting = [actor for actor in self._waiting if actor.group != group]

    def read(self):
        """Return the depths of the queues, as `worker.broker.QueueDepths` does; None out of reach."""
        if not self.reachable:
            return None
        return {name: len(messages) for name, messages in self._queues.items()}

    def close(self):
        """Nothing is open."""


class Publisher:
    """What `worker.publisher.Dispatcher` does for one process, at once; it never raises and never waits."""

    is_failing = False

    def __init__(self, broker, draw):
        self._broker = broker
        self._draw = draw

    def events(self, event_ids):
        self._by_chance(EVENTS_QUEUE, list(event_ids), always_together=True)

    def tasks(self, tasks):
        queues = {}
        for task in tasks:
            queues.setdefault(QUEUE_OF[task.provider], []).append(task.id)
        for queue, ids in queues.items():
            self._by_chance(queue, ids)

    def close(self):
        """Nothing waits."""

    def _by_chance(self, queue, ids, *, always_together=False):
        while ids:
            size = len(ids) if always_together else self._draw.randint(1, len(ids))
            part, ids = ids[:size], ids[size:]
            together = always_together or size > 1
            self._broker.publish(queue, part, MESSAGE_EXPIRES_SECONDS if together else None)
