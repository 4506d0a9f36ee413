"""Every environment variable Leadwire reads, in one place.

All carry the prefix `LEADWIRE_`; faults are reported all at once; secrets never show in a repr. A `.env` file in the
working folder is read too, and the environment wins over it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dotenv import dotenv_values

from rules.vocabulary import SettingsError

PREFIX: Final = "LEADWIRE_"

#: Brokers by URL. Valkey speaks as Redis does, and so does its URL to Celery, which knows the Redis words only.
BROKER_SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "redis+socket", "unix", "amqp", "amqps")
#: The slowest rate that may be set, in requests a second.
LEAST_RATE: Final = 0.01
_SAME_AS: Final = {"valkey": "redis", "valkeys": "rediss", "unix": "redis+socket"}


class Secret:
    """A text that never shows itself: print it and four stars appear; `reveal()` is for the wire alone."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "****"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting as the README lists it: its name without the prefix, its default and what it decides."""

    name: str
    default: str
    meaning: str
    secret: bool = False


#: The manual of all settings; `tests/test_readme.py` compares the README's table with it.
VARIABLES: Final = (
    Variable(
        name="HOME", default=".leadwire", meaning="Data folder: ledger, broker files, Flower state, operator token."
    ),
    Variable(
        name="RULES", default="", meaning="Folder of rule files. No default: example rules never fire by themselves."
    ),
    Variable(
        name="DATABASE_URL",
        default="",
        meaning="Ledger. Empty: the SQLite file `ledger.sqlite3` in the data folder; several machines: "
        "`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.",
    ),
    Variable(name="BROKER_URL", default="", meaning="Broker. Empty: `leadwire up` starts its own on a Unix socket."),
    Variable(name="HOST", default="127.0.0.1", meaning="Address that webhooks are received on."),
    Variable(name="PORT", default="8080", meaning="Port that webhooks are received on; 0 chooses a free one."),
    Variable(
        name="OPERATOR_HOST",
        default="127.0.0.1",
        meaning="Address of the operator port and of Flower: keep it private.",
    ),
    Variable(name="OPERATOR_PORT", default="8081", meaning="Port of `/metrics` and `/status`; 0 chooses a free one."),
    Variable(name="FLOWER_PORT", default="5555", meaning="Flower's port on that address; 0 chooses a free one."),
    Variable(
        name="SANDBOX_PORT", default="8090", meaning="Port of `leadwire sandbox` on 127.0.0.1; 0 chooses a free one."
    ),
    Variable(
        name="PUBLIC_URL",
        default="",
        meaning="How senders reach this server, such as https://hooks.example.com; HubSpot signs it.",
    ),
    Variable(name="MINDHUNTERS_URL", default="", meaning="API root, such as https://YOU.mindhunters.ai/api/v1."),
    Variable(name="MINDHUNTERS_TOKEN", default="", meaning="Bearer token of the workspace.", secret=True),
    Variable(name="VAMBE_URL", default="https://api.vambe.me/api/public", meaning="API root."),
    Variable(name="VAMBE_API_KEY", default="", meaning="Key of the organisation.", secret=True),
    Variable(name="MINDHUNTERS_RATE", default="20", meaning="Requests a second, of all workers together; 0: no limit."),
    Variable(name="MINDHUNTERS_CONCURRENCY", default="8", meaning="Requests on their way at once; 0: no limit."),
    Variable(name="MINDHUNTERS_DAILY_CAP", default="0", meaning="Attempts in a day (UTC); 0: no limit."),
    Variable(
        name="MINDHUNTERS_POLL",
        default="0",
        meaning="Seconds between two questions what became of a delivered task; 0: it is not asked.",
    ),
    Variable(name="VAMBE_RATE", default="20", meaning="As for Mindhunters."),
    Variable(name="VAMBE_CONCURRENCY", default="8", meaning="As for Mindhunters."),
    Variable(name="VAMBE_DAILY_CAP", default="0", meaning="As for Mindhunters."),
    Variable(
        name="OPERATOR_TOKEN",
        default="",
        meaning="Password of Flower and the operator port. Empty: made at first start, kept in the data folder.",
        secret=True,
    ),
    Variable(
        name="INGRESS_PROCESSES",
        default="1",
        meaning="Processes that share the public port; one uses one core at most.",
    ),
    Variable(name="WORKER_THREADS", default="16", meaning="Threads of one worker process."),
    Variable(name="LOG_FORMAT", default="text", meaning="`text` or `json`."),
    Variable(name="LOG_LEVEL", default="info", meaning="`debug`, `info`, `warning` or `error`."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force. Ports of 0 mean: choose a free one and say which."""

    home: Path
    rules: Path | None = None
    database_url: str = field(default="", repr=False)  # it may hold a password, and so may the next one
    broker_url: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    port: int = 8080
    operator_host: str = "127.0.0.1"
    operator_port: int = 8081
    flower_port: int = 5555
    sandbox_port: int = 8090
    public_url: str | None = None
    mindhunters_url: str | None = None
    mindhunters_token: Secret | None = None
    vambe_url: str = "https://api.vambe.me/api/public"
    vambe_api_key: Secret | None = None
    mindhunters_rate: float = 20.0  # requests a second; here and below 0 means: no limit
    mindhunters_concurrency: int = 8
    mindhunters_daily_cap: int = 0
    mindhunters_poll_seconds: int = 0
    vambe_rate: float = 20.0
    vambe_concurrency: int = 8
    vambe_daily_cap: int = 0
    operator_token: Secret | None = None
    ingress_processes: int = 1
    worker_threads: int = 16
    log_format: str = "text"
    log_level: str = "info"
    #: What `${NAME}` in rules and `{env: NAME}` in sources may read: everything but Leadwire's own variables.
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raises SettingsError with every fault."""
        reader = _Reader(environment)
        home = reader.place("HOME")
        if os.path.exists(home) and not os.path.isdir(home):  # noqa: PTH110, PTH112 - these never raise, whatever the path
            reader.faults.append(f"{PREFIX}HOME: {home} is not a folder: name one, or one that can be made")
        settings = cls(
            home=home,
            rules=reader.place("RULES") if reader.text("RULES") else None,
            database_url=reader.text("DATABASE_URL") or f"sqlite:///{home / 'ledger.sqlite3'}",
            broker_url=reader.broker_url("BROKER_URL"),
            host=reader.text("HOST"),
            port=reader.whole("PORT", 0, 65_535),
            operator_host=reader.text("OPERATOR_HOST"),
            operator_port=reader.whole("OPERATOR_PORT", 0, 65_535),
            flower_port=reader.whole("FLOWER_PORT", 0, 65_535),
            sandbox_port=reader.whole("SANDBOX_PORT", 0, 65_535),
            public_url=reader.url("PUBLIC_URL", ("http", "https")),
            mindhunters_url=reader.url("MINDHUNTERS_URL", ("http", "https")),
            mindhunters_token=reader.secret("MINDHUNTERS_TOKEN"),
            vambe_url=reader.url("VAMBE_URL", ("http", "https")) or "",
            vambe_api_key=reader.secret("VAMBE_API_KEY"),
            mindhunters_rate=reader.rate("MINDHUNTERS_RATE"),
            mindhunters_concurrency=reader.whole("MINDHUNTERS_CONCURRENCY", 0, 10_000),
            mindhunters_daily_cap=reader.whole("MINDHUNTERS_DAILY_CAP", 0, 1_000_000_000),
            mindhunters_poll_seconds=reader.whole("MINDHUNTERS_POLL", 0, 86_400),
            vambe_rate=reader.rate("VAMBE_RATE"),
            vambe_concurrency=reader.whole("VAMBE_CONCURRENCY", 0, 10_000),
            vambe_daily_cap=reader.whole("VAMBE_DAILY_CAP", 0, 1_000_000_000),
            operator_token=reader.secret("OPERATOR_TOKEN"),
            ingress_processes=reader.whole("INGRESS_PROCESSES", 1, 64),
            worker_threads=reader.whole("WORKER_THREADS", 1, 256),
            log_format=reader.choice("LOG_FORMAT", ("text", "json")),
            log_level=reader.choice("LOG_LEVEL", ("debug", "info", "warning", "error")),
            environment={name: value for name, value in environment.items() if not name.startswith(PREFIX)},
        )
        reader.raise_faults()
        return settings


def environment_of(working_folder: Path) -> dict[str, str]:
    """Return the process's environment with that folder's `.env` beneath it; raises SettingsError for one unreadable."""
    file = working_folder / ".env"
    try:
        from_file = {name: value for name, value in dotenv_values(file).items() if value is not None}
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    return {**from_file, **os.environ}


@dataclass(slots=True)
class _Reader:
    """Reads variables one by one and keeps what is wrong with them."""

    environment: Mapping[str, str]
    faults: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        default = next(variable.default for variable in VARIABLES if variable.name == name)
        return self.environment.get(PREFIX + name, "").strip() or default

    def place(self, name: str) -> Path:
        text = self.text(name)
        try:
            return Path(text).expanduser().absolute()
        except RuntimeError:  # what Python raises for ~nobody
            self.faults.append(f"{PREFIX}{name}: {text}: there is no such home folder: write the whole path")
            return Path(text).absolute()

    def secret(self, name: str) -> Secret | None:
        text = self.text(name)
        if not text.isascii() or not text.isprintable():
            self.faults.append(f"{PREFIX}{name}: holds characters that no HTTP header can carry: set it again")
        return Secret(text) if text else None

    def whole(self, name: str, least: int, most: int) -> int:
        text = self.text(name)
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            self.faults.append(f"{PREFIX}{name}: {text!r} is not a whole number from {least} to {most}")
            return least
        return int(text)

    def rate(self, name: str) -> float:
        """Return how many a second: 0, or a number from one in a hundred seconds up."""
        text = self.text(name)
        good = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", text) and (float(text) == 0 or float(text) >= LEAST_RATE)
        if not good:
            self.faults.append(f"{PREFIX}{name}: {text!r} is not 0 or a number from {LEAST_RATE} to 9999")
            return 0.0
        return float(text)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        text = self.text(name).lower()
        if text not in allowed:
            self.faults.append(f"{PREFIX}{name}: {text!r} is not one of {', '.join(allowed)}")
        return text

    def url(self, name: str, schemes: tuple[str, ...]) -> str | None:
        text = self.text(name)
        if not text:
            return None
        try:
            parts = urlsplit(text)
            good = parts.scheme in schemes and bool(parts.netloc or "socket" in parts.scheme or parts.scheme == "unix")
            _ = parts.port
        except ValueError:
            good = False
        if not good:
            # The value may carry a password: name the variable, never print it.
            self.faults.append(
                f"{PREFIX}{name}: is not a URL that begins with {' or '.join(s + '://' for s in schemes)}"
            )
        return text.rstrip("/") if "http" in text[:5] else text

    def broker_url(self, name: str) -> str | None:
        text = self.url(name, BROKER_SCHEMES)
        scheme, separator, rest = (text or "").partition("://")
        return f"{_SAME_AS.get(scheme, scheme)}{separator}{rest}" if text else None

    def raise_faults(self) -> None:
        if self.faults:
            raise SettingsError("\n".join(self.faults))
