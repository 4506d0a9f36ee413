"""Fixtures that several test folders need: a moment, and the servers, each started once when the first test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from ingress.sources import Source, build
from rules.rule_set import SourceText
from rules.vocabulary import RuleFault
from rules.yaml_reader import read
from tests.servers.needs import missing

if TYPE_CHECKING:
    from tests.servers.postgres import PostgresServer
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.redis import Redis
    from tests.servers.valkey import Valkey


# A time is never asserted: on a busy machine any example may take long.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


@pytest.fixture
def now() -> datetime:
    """Return the moment at which tests happen: Monday, 2 March 2026, 13:00 UTC, 10:00 in Santiago."""
    return datetime(2026, 3, 2, 13, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return the PostgreSQL server of this run: `postgres.migrated()` is the URL of an empty ledger in it."""
    from tests.servers.postgres import PostgresServer, programs  # noqa: PLC0415 - most tests need no database server

    try:
        programs()
    except RuntimeError:
        missing("postgresql")
    server = PostgresServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Return a Redis server: `redis_server.new_url()` is the URL of an empty database in it."""
    from tests.servers.redis import Redis  # noqa: PLC0415 - likewise

    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Return a Valkey server: `valkey_server.new_url()` is the URL of an empty database in it."""
    from tests.servers.valkey import Valkey  # noqa: PLC0415 - likewise

    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ node: `rabbitmq_server.new_url()` is the URL of an empty virtual host in it."""
    from tests.servers.rabbitmq import RabbitMQ  # noqa: PLC0415 - likewise

    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.stop()


MakeSource = Callable[..., Source]
FindFaults = Callable[..., list[RuleFault]]


def _texts(name: str, text: str) -> list[SourceText]:
    value, places = read(text, "sources.yaml")
    assert not places.faults, places.faults
    return [SourceText(name=name, value=value, places=places, path=())]


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """Return a function that makes the source of a YAML text; every `{env: NAME}` must be in the environment given."""
    made: dict[tuple[object, ...], Source] = {}

    def make(
        text: str,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "crm",
        public_url: str | None = "https://hooks.example.com",
    ) -> Source:
        key = (text, *(environment or {}).items(), name, public_url)
        if key not in made:
            sources, faults = build(_texts(name, text), environment or {}, public_url=public_url)
            assert [] == faults, "\n".join(map(str, faults))
            made[key] = sources[name]
        return made[key]

    return make


@pytest.fixture(scope="session")
def find_faults() -> FindFaults:
    """Return a function that tells what is wrong with the source of a YAML text."""

    def find(
        text: str,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "crm",
        public_url: str | None = "https://hooks.example.com",
    ) -> list[RuleFault]:
        sources, faults = build(_texts(name, text), environment or {}, public_url=public_url)
        assert not (sources and faults)
        return faults

    return find
