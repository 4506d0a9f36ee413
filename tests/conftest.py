"""Fixtures that several test folders need: a moment, and the servers, each started once when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.servers.needs import missing

if TYPE_CHECKING:
    from tests.servers.postgres import PostgresServer
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.redis import Redis
    from tests.servers.valkey import Valkey


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
