"""What a worker tells probes about itself, in a file: whether it works, and what hinders it.

Apart from the watch that writes it, because a probe starts a process each time and shall load nothing heavy.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rules.vocabulary import Problem

#: A report older than this says that the worker hangs or is gone.
STALE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Whether a worker works; if not, what hinders it."""

    works: bool
    reason: str = ""

    def write(self, path: Path) -> None:
        """Put the report there at one blow: a reader never meets half of one."""
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(json.dumps({"works": self.works, "reason": self.reason, "pid": os.getpid()}), encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the report of a worker that still writes; raises Problem when there is none."""
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
