"""What every process sets up: logging, garbage collection, periodic threads. Also the health report of a worker.

Imports little, because a probe (`leadwire healthcheck`) starts a new process each time and imports only this.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rules.vocabulary import LedgerError, Problem

log = logging.getLogger(__name__)

#: The usual pause between two rounds of background work: due work starts within a second of its moment, where a thread and a
#: place in its queue are free.
PERIOD_SECONDS: Final = 0.5
#: How long the end of a round under way is waited for when the worker ends: longer than one request.
STOP_SECONDS: Final = 15.0
#: Libraries whose every request or event would be a line.
QUIET: Final = (
    "httpx",
    "httpcore",
    "alembic",
    "celery.app.trace",
    "celery.worker.strategy",
    "tornado.access",
)


class JsonLines(logging.Formatter):
    """A log formatter with one JSON object a line: `at level logger message`, and `fault` with the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["fault"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(log_format: str, level: str, file: str | None = None) -> None:
    """Log to standard error or a file, with times in UTC. No log line contains a body, a secret or personal data.

    `log_format` is `text`, or `json` for one object a line.
    """
    formatter: logging.Formatter
    if log_format == "json":
        formatter = JsonLines()
    else:
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
    formatter.converter = time.gmtime
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns whenever a request waits for a thread


#: For `gc.set_threshold`: how many new objects before the youngest are looked through, and how often that is before the
#: next generation is.
GARBAGE_THRESHOLDS: Final = (20_000, 20, 50)


def tune_garbage_collection() -> None:
    """Have the collector look for cycles seldom, and never among what exists now; for processes that stay.

    Events, plans and claims come in batches of thousands of objects that are all in use, so the usual thresholds have the
    collector walk the whole heap several times a second, with every other thread at a halt. Measured under full load: 330
    collections in 5 s took 9 % of a worker's CPU, the longest 80 ms each, while it held the ledger's write lock; with these
    thresholds 4 took 0.4 %.
    """
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.freeze()


#: A report older than this says that the worker hangs or is gone.
STALE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """Whether a worker is healthy, and if not, why; a file written by the worker's watchdog and read by probes."""

    works: bool
    reason: str = ""

    def write(self, path: Path) -> None:
        """Replace the file atomically: a reader never sees part of a report."""
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(json.dumps({"works": self.works, "reason": self.reason, "pid": os.getpid()}), encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the report of a worker that still updates it. Raises Problem when there is none."""
        try:
            age_seconds = time.time() - path.stat().st_mtime
            said = json.loads(path.read_text(encoding="utf-8"))
            report = cls(works=said["works"] is True, reason=str(said["reason"]))
        except FileNotFoundError:
            raise Problem(f"{path}: no worker reports there: start it with --health-file") from None
        except (ValueError, TypeError, KeyError) as error:
            raise Problem(f"{path}: is no worker's report") from error
        if age_seconds > STALE_SECONDS:
            raise Problem(f"the worker has not reported for {age_seconds:.0f} s: it hangs or is gone")
        return report


class PeriodicThread:
    """Calls `work` again and again on its own thread, from `start` until `stop`.

    `work` does one round and returns the seconds until the next one. An exception is logged, and the next round follows after
    `period_seconds`. The first round starts `period_seconds` after `start`.
    """

    def __init__(self, name: str, work: Callable[[], float], *, period_seconds: float = PERIOD_SECONDS) -> None:
        self.name = name
        self._work = work
        self._period_seconds = period_seconds
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Start the next round at once, or when the current one has ended."""
        self._woken.set()

    def stop(self, patience_seconds: float = STOP_SECONDS) -> None:
        """Stop after the current round; waits for that at most `patience_seconds`."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=patience_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def _run(self) -> None:
        pause_seconds = self._period_seconds
        while True:
            self._woken.wait(pause_seconds)
            self._woken.clear()
            if self._stopping.is_set():
                return
            pause_seconds = self._period_seconds
            try:
                pause_seconds = self._work()
            except LedgerError as error:
                log.warning("%s waits, the ledger cannot be used now: %s", self.name, error)
            except Exception:
                log.exception("a round of %s failed; the next one tries again", self.name)
