"""The CRM: posts numbered, signed events at a steady rate, comes again after a refusal, and notes every answer."""

from __future__ import annotations

import heapq
import http.client
import threading
import time
from pathlib import Path

from tests.faults.chaos import events
from tests.faults.chaos.history import Post

THREADS = 12
#: How long a sender waits for an answer.
PATIENCE_SECONDS = 5.0
#: It comes again after so long, so many times; real ones do so for hours.
AGAIN_SECONDS, TRIES = 1.0, 8


class Sender:
    """Posts until stopped; `posts` holds every request, `accepted` in a file the ids that were answered with 2xx."""

    def __init__(self, port: int, seed: int, rate: float, log: Path) -> None:
        self.posts: list[Post] = []
        self._port, self._seed, self._rate = port, seed, rate
        self._log = log.open("a", buffering=1)
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, int]] = []  # (when, number, tries made)
        self._next = 0
        self._begun_at = 0.0
        self._ending = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]

    def start(self) -> None:
        """Begin to post."""
        self._begun_at = time.time()
        for thread in self._threads:
            thread.start()

    @property
    def answered(self) -> set[str]:
        """The events that were accepted so far."""
        with self._changed:
            return {post.event for post in self.posts if post.accepted}

    def finished(self, seconds: float) -> bool:
        """Post no new events, come again with those that were refused; whether all that is over within so long."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        give_up_at = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        over = not any(thread.is_alive() for thread in self._threads)
        if over:
            self._log.close()
        return over

    def _run(self) -> None:
        while (job := self._take()) is not None:
            number, tries = job
            content = events.body(self._seed, number)
            began_at = time.time()
            status = self._post(content)
            post = Post(event=events.event_id(self._seed, number), at=began_at, ended_at=time.time(), status=status)
            with self._changed:
                self.posts.append(post)
                if post.accepted:
                    self._log.write(f"{post.ended_at:.6f} {post.event}\n")
                elif tries + 1 < TRIES:
                    heapq.heappush(self._due, (time.time() + AGAIN_SECONDS, number, tries + 1))
                    self._changed.notify()

    def _take(self) -> tuple[int, int] | None:
        """Return the next event and how often it was posted, when its moment has come; None at the end."""
        with self._changed:
            while True:
                fresh_at = self._begun_at + self._next / self._rate
                again_at = self._due[0][0] if self._due else float("inf")
                now = time.time()
                if again_at <= now:
                    _, number, tries = heapq.heappop(self._due)
                    return number, tries
                if not self._ending and fresh_at <= now:
                    self._next += 1
                    return self._next - 1, 0
                if self._ending and not self._due:
                    return None
                self._changed.wait(max(0.001, min(again_at, float("inf") if self._ending else fresh_at, now + 1) - now))

    def _post(self, content: bytes) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
        headers = {"X-Signature": events.signature(content), "Content-Type": "application/json"}
        try:
            connection.request("POST", events.PATH, content, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return answer.status
