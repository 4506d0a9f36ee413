"""Whether this worker still works: what it tells probes, and when it ends so that whoever runs it starts it afresh.

After a broker's crash Celery was seen alive but deaf: connected, and taking no message for good. A supervisor beside the
worker cannot be counted on where containers run, so the worker judges itself. Deaf is one that takes no message while work
is due and messages wait; neither a slow provider nor an idle hour nor a broker that is away or full looks like that.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from rules.vocabulary import LedgerError
from worker.awake import awake_seconds
from worker.context import utc_now
from worker.runtime import HealthReport

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 5.0
#: While something hinders the worker: that it is over shall be told soon.
HINDERED_SECONDS: Final = 1.0
#: More than a lost message (30 s until the sweep repeats it) and a slow attempt (30 s) explain.
DEAF_SECONDS: Final = 75.0
#: How long a deaf worker may take to end by itself.
ENDING_SECONDS: Final = 20.0


class Watchdog:
    """The watching thread of one worker process.

    `depths` says how many messages wait in each queue, None while the broker cannot be reached; `oldest_due` since when the
    oldest work is due. `sign` is the file that the worker touches with every message it takes; `report` is kept for probes.
    """

    def __init__(
        self,
        depths: Callable[[], Mapping[str, int] | None],
        oldest_due: Callable[[], datetime | None],
        *,
        sign: Path,
        report: Path,
        end: Callable[[], None] | None = None,
        deaf_seconds: float = DEAF_SECONDS,
    ) -> None:
        self._depths = depths
        self._oldest_due = oldest_due
        self._sign = sign
        self._report = report
        self._end = end or self._end_process
        self._deaf_seconds = deaf_seconds
        self._taken: float | None = None
        self._still_since_seconds = awake_seconds()
        self._seen_waiting = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin, with nothing left of an earlier process."""
        self._sign.unlink(missing_ok=True)
        self._report.unlink(missing_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End; the last report is taken away."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._report.unlink(missing_ok=True)

    def _run(self) -> None:
        works = False
        while not self._stopping.wait(PERIOD_SECONDS if works else HINDERED_SECONDS):
            try:
                works = self.once().works
            except OSError as error:
                log.warning("the report for probes cannot be written: %s", error)
            except Exception:
                log.exception("a round of the watch failed; the next one tries again")

    def once(self) -> HealthReport:
        """Judge once, write the report, and end the process when it is deaf."""
        hindered = self._hindered()
        if hindered is not None:
            self._taken = self._last_taken()
            self._still_since_seconds = awake_seconds()
            self._seen_waiting = False
        deaf = self._seen_waiting and awake_seconds() - self._still_since_seconds > self._deaf_seconds
        reason = "work is due, messages wait, and none is taken" if deaf else hindered or ""
        report = HealthReport(works=not reason, reason=reason)
        report.write(self._report)
        if deaf:
            log.error("%s: this worker ends, to be started afresh", reason)
            self._end()
        return report

    def _hindered(self) -> str | None:
        """Return what keeps the worker from its work, empty when nothing does; None when it stands still, for whatever cause."""
        taken = self._last_taken()
        if taken is None:
            return "it has not begun to take messages"
        waiting = self._depths()
        if waiting is None:
            return "the broker cannot be reached"
        try:
            oldest_at = self._oldest_due()
        except LedgerError as fault:
            return str(fault)
        if oldest_at is None or oldest_at > utc_now() or taken != self._taken:
            return ""
        self._seen_waiting = self._seen_waiting or any(waiting.values())
        return None

    def _last_taken(self) -> float | None:
        """Return when the last message was taken, or work began; None before that."""
        try:
            return self._sign.stat().st_mtime
        except FileNotFoundError:
            return None

    def _end_process(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopping.wait(ENDING_SECONDS):
            os._exit(1)
