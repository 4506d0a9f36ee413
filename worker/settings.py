"""Every environment variable that Leadwire reads, in one place: `Settings`, by pydantic-settings.

All carry the prefix `LEADWIRE_`. Faults are reported all at once, and secrets never show. A `.env` file in the working folder is
read too, and the environment wins over it. `docs/settings.md` is made from the fields below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from rules.vocabulary import SettingsError

PREFIX: Final = "LEADWIRE_"

#: Valkey speaks as Redis does, and so does its URL to Celery, which knows the Redis words only.
BROKER_SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "redis+socket", "unix", "amqp", "amqps")
_CELERY_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss", "unix": "redis+socket"}
#: The slowest rate that may be set, in requests a second.
LEAST_RATE: Final = 0.01


def _folder(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # what Python raises for ~nobody
        raise ValueError(f"{path}: there is no such home folder: write the whole path") from None


def _whole(least: int, most: int) -> BeforeValidator:
    """Return what takes a whole number within these bounds, both included."""

    def check(given: object) -> object:
        text = str(given)
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            raise ValueError(f"{given!r} is not a whole number from {least} to {most}")
        return int(text)

    return BeforeValidator(check)


def _rate(given: object) -> object:
    text = str(given)
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", text) or 0 < float(text) < LEAST_RATE:
        raise ValueError(f"{given!r} is not 0 or a number from {LEAST_RATE} to 9999")
    return float(text)


def _url(*schemes: str) -> AfterValidator:
    """Return what takes a URL of these schemes. The value may hold a password: no message repeats it."""

    def check(text: str) -> str:
        try:
            parts = urlsplit(text)
            good = parts.scheme in schemes and bool(parts.netloc or "socket" in parts.scheme or parts.scheme == "unix")
            _ = parts.port
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"is not a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return text.rstrip("/") if "http" in schemes else text

    return AfterValidator(check)


def _for_celery(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{_CELERY_SCHEMES.get(scheme, scheme)}{separator}{rest}"


def _header_value(secret: SecretStr) -> SecretStr:
    if not (secret.get_secret_value().isascii() and secret.get_secret_value().isprintable()):
        raise ValueError("holds characters that no HTTP header can carry: set it again")
    return secret


def _module_names(given: object) -> object:
    if not isinstance(given, str):
        return given
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{name!r} is not the name of a Python module, such as my_module or package.module")
    return names


Folder = Annotated[Path, AfterValidator(_folder)]
Port = Annotated[int, _whole(0, 65_535)]
Rate = Annotated[float, BeforeValidator(_rate)]
Concurrency = Annotated[int, _whole(0, 10_000)]
DailyCap = Annotated[int, _whole(0, 1_000_000_000)]
HttpUrl = Annotated[str, _url("http", "https")]
BrokerUrl = Annotated[str, _url(*BROKER_SCHEMES), AfterValidator(_for_celery)]
Credential = Annotated[SecretStr, AfterValidator(_header_value)]
Lower = BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given)


class Settings(BaseSettings):
    """The settings in force. Ports of 0 mean: choose a free one and say which.

    `Settings(home=...)` takes what it is given and reads no environment; `Settings.from_environment` reads one.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True, validate_default=True
    )

    home: Folder = Field(
        Path(".leadwire"), description="Data folder: ledger, broker files, Flower state, operator token."
    )
    rules: Folder | None = Field(
        None, description="Folder of rule files. No default: example rules never fire by themselves."
    )
    database_url: str = Field(
        "",
        repr=False,  # it may hold a password, and so may the next one
        description="Ledger. Empty: the SQLite file `ledger.sqlite3` in the data folder; several machines: "
        "`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.",
    )
    broker_url: BrokerUrl | None = Field(
        None, repr=False, description="Broker. Empty: `leadwire up` starts its own on a Unix socket."
    )
    host: str = Field("127.0.0.1", description="Address that webhooks are received on.")
    port: Port = Field(8080, description="Port that webhooks are received on; 0 chooses a free one.")
    operator_host: str = Field("127.0.0.1", description="Address of the operator port and of Flower: keep it private.")
    operator_port: Port = Field(8081, description="Port of `/metrics` and `/status`; 0 chooses a free one.")
    flower_port: Port = Field(5555, description="Flower's port on that address; 0 chooses a free one.")
    sandbox_port: Port = Field(8090, description="Port of `leadwire sandbox` on 127.0.0.1; 0 chooses a free one.")
    public_url: HttpUrl | None = Field(
        None, description="How senders reach this server, such as https://hooks.example.com; HubSpot signs it."
    )
    mindhunters_url: HttpUrl | None = Field(None, description="API root, such as https://YOU.mindhunters.ai/api/v1.")
    mindhunters_token: Credential | None = Field(None, description="Bearer token of the workspace.")
    vambe_url: HttpUrl = Field("https://api.vambe.me/api/public", description="API root.")
    vambe_api_key: Credential | None = Field(None, description="Key of the organisation.")
    mindhunters_rate: Rate = Field(20.0, description="Requests a second, of all workers together; 0: no limit.")
    mindhunters_concurrency: Concurrency = Field(8, description="Requests on their way at once; 0: no limit.")
    mindhunters_daily_cap: DailyCap = Field(0, description="Attempts in a day (UTC); 0: no limit.")
    mindhunters_poll_seconds: Annotated[int, _whole(0, 86_400)] = Field(
        0,
        alias=f"{PREFIX}MINDHUNTERS_POLL",
        description="Seconds between two questions what became of a delivered task; 0: it is not asked.",
    )
    vambe_rate: Rate = Field(20.0, description="As for Mindhunters.")
    vambe_concurrency: Concurrency = Field(8, description="As for Mindhunters.")
    vambe_daily_cap: DailyCap = Field(0, description="As for Mindhunters.")
    operator_token: Credential | None = Field(
        None,
        description="Password of Flower and the operator port. Empty: made at first start, kept in the data folder.",
    )
    ingress_processes: Annotated[int, _whole(1, 64)] = Field(
        1, description="Processes that share the public port; one uses one core at most."
    )
    imports: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_module_names)] = Field(
        (),
        description="Python modules that workers import, with commas between: signals, Sentry, further Celery tasks.",
    )
    worker_threads: Annotated[int, _whole(1, 256)] = Field(16, description="Threads of one worker process.")
    log_format: Annotated[Literal["text", "json"], Lower] = Field("text", description="`text` or `json`.")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = Field(
        "info", description="`debug`, `info`, `warning` or `error`."
    )
    #: What `${NAME}` in rules and `{env: NAME}` in sources may read: everything but Leadwire's own variables.
    environment: Mapping[str, str] = Field(default_factory=dict, repr=False)

    @field_validator("home")
    @classmethod
    def _home_can_be_a_folder(cls, home: Path) -> Path:
        if os.path.exists(home) and not os.path.isdir(home):  # noqa: PTH110, PTH112 - these never raise, whatever the path
            raise ValueError(f"{home} is not a folder: name one, or one that can be made")
        return home

    @field_validator("database_url")
    @classmethod
    def _ledger_in_the_data_folder(cls, url: str, info: ValidationInfo) -> str:
        return url or f"sqlite:///{info.data.get('home', Path()) / 'ledger.sqlite3'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - called by name
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but what the constructor is given: `from_environment` says which environment counts."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from these variables; an empty one counts as absent. Raises SettingsError with every fault."""
        source = EnvSettingsSource(cls)
        given = {name: value.strip() for name, value in environment.items() if name.startswith(PREFIX)}
        source.env_vars = {name.lower(): value for name, value in given.items() if value}  # as the source looks them up
        others = {name: value for name, value in environment.items() if not name.startswith(PREFIX)}
        try:
            return cls(**source(), environment=others)
        except ValidationError as error:
            raise SettingsError("\n".join(map(_fault, error.errors(include_url=False)))) from None


def _fault(error: Any) -> str:
    """Return one fault of a setting, beginning with its variable."""
    place = str(error["loc"][0])
    name = place if place.startswith(PREFIX) else f"{PREFIX}{place.upper()}"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{name}: {error['input']!r} is not one of {error['ctx']['expected'].replace(' or ', ', ')}".replace(
            "'", ""
        )
    return f"{name}: {error['msg']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting as the manual lists it: its name without the prefix, its default and what it decides."""

    name: str
    default: str
    meaning: str
    secret: bool


def _variables() -> tuple[Variable, ...]:
    fields = {name: field for name, field in Settings.model_fields.items() if field.description}
    return tuple(
        Variable(
            name=(field.alias or name).removeprefix(PREFIX).upper(),
            default=""
            if field.default in (None, ())
            else format(field.default, "g" if isinstance(field.default, float) else ""),
            meaning=field.description or "",
            secret="SecretStr" in str(field.annotation),
        )
        for name, field in fields.items()
    )


#: The manual of all settings, which `docs/settings.md` shows.
VARIABLES: Final = _variables()


def broker_of(settings: Settings) -> str:
    """Return the broker's URL. Raises SettingsError where there is none."""
    if not settings.broker_url:
        raise SettingsError(
            "LEADWIRE_BROKER_URL is not set: name a Redis, Valkey or RabbitMQ server, or use `leadwire up`, which starts one"
        )
    return settings.broker_url


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
