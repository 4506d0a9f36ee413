"""Files of the data folder besides the ledger: the supervisor's lock, the instance id, the operator token."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from rules.vocabulary import Problem
from worker.settings import Settings

#: How long a start waits for the processes of an earlier one to go.
LEFTOVERS_SECONDS: Final = 5.0


def lock_folder(home: Path) -> int:
    """Take the folder's lock and return its descriptor, waiting for the processes of an earlier start to go."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LEFTOVERS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > give_up_at:
                os.close(descriptor)
                raise Problem(
                    f"{home}: another `leadwire up` works here: stop it first, or choose another LEADWIRE_HOME"
                ) from None
            time.sleep(0.1)
        else:
            return descriptor


def instance_id(home: Path) -> str:
    """Return the prefix of the lease owners of this folder, the same at every start."""
    return _kept(home / "instance", lambda: f"up-{secrets.token_hex(6)}")


def operator_token(settings: Settings) -> str:
    """Return Flower's password: the configured one, else one that the first start generated."""
    if settings.operator_token:
        return settings.operator_token.get_secret_value()
    return _kept(settings.home / "operator-token", lambda: secrets.token_urlsafe(18))


def _kept(path: Path, make: Callable[[], str]) -> str:
    with suppress(FileNotFoundError):
        text = path.read_text().strip()
        if text:
            return text
    text = make()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return text
