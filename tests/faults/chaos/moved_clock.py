"""`python -m tests.faults.chaos.moved_clock FILE WORD ...`: `leadwire WORD ...`, its clock off by the seconds in the file.

Leadwire reads the clock in one place, and that is what is moved. libfaketime would move it for the whole process, but it
breaks the timed waits of Python 3.11 (`time.sleep` raises EINVAL under version 0.9.10): then a run tests libfaketime.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import worker.context
from console.cli import main


def moved(file: Path) -> type[datetime]:
    """Return a datetime whose `now` is off by so many seconds as the file says at that moment."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=int(file.read_text() or 0))

    return Moved


if __name__ == "__main__":
    worker.context.datetime = moved(Path(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]
    main()
