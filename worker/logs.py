"""What is logged and in which form: text for a person, JSON for a machine; never a body, a secret or a person's data."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

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
    """One JSON object a line: `at level logger message`, and `fault` with the traceback where there is one."""

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


def set_up(log_format: str, level: str) -> None:
    """Send this process's log lines to standard error, in UTC."""
    formatter: logging.Formatter
    if log_format == "json":
        formatter = JsonLines()
    else:
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns whenever a request waits for a thread
    logging.getLogger("uvicorn.error").setLevel(
        logging.ERROR
    )  # it warns of all that is no request, and anybody can send that
