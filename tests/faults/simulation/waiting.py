"""What a process waits for in itself, on the world's clock: its end, a slot of a provider, a thread of a pool."""

from __future__ import annotations

from concurrent.futures import Future


class Closing:
    """What `threading.Event` is to a process that is told to end: its waits take the world's time."""

    def __init__(self, scheduler):
        self._scheduler = scheduler
        self._set = False

    def is_set(self):
        return self._set

    def set(self):
        self._set = True

    def wait(self, timeout=None):
        self._scheduler.sleep(timeout)
        return self._set


class Bulkhead:
    """What `worker.context.Bulkhead` is, on the world's clock: who has no patience does not overtake who waits."""

    def __init__(self, size, scheduler):
        self.size = size
        self.free = size
        self._waiting = 0
        self._scheduler = scheduler

    def acquire(self, patience_seconds):
        if not patience_seconds and self._waiting:
            return False
        if not self.free and patience_seconds:
            self._waiting += 1
            self._scheduler.sleep(patience_seconds)
            self._waiting -= 1
        if not self.free:
            return False
        self.free -= 1
        return True

    def release(self):
        self.free += 1


class Pool:
    """Does at once what a pool of threads does side by side; at times no thread is to be had."""

    def __init__(self, world):
        self._world = world

    def submit(self, act, *args):
        if "threads" in self._world.troubles and self._world.calm_since is None and self._world.draw.random() < 0.05:
            raise RuntimeError("simulated: no thread is to be had")
        future = Future()
        try:
            future.set_result(act(*args))
        except Exception as error:  # noqa: BLE001 - as a pool does
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        """Nothing runs."""
