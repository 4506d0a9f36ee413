"""Where the line runs: which ledger, which broker, and how each is killed.

A test runs on the first house, unless `houses` marks it for more. The servers of the other houses are shared by the whole
run; each line gets a database and a virtual host (or a database of Redis) of its own.
"""

import os
import signal
from typing import ClassVar

import pytest

from tests.flow.processes import command_of, processes_of


class House:
    """One ledger and one broker; `settings` of a new line on it, and what may happen to the broker."""

    name = "sqlite+valkey"
    needs: ClassVar = ()

    def __init__(self, **servers):
        self.servers = servers

    def settings(self):
        """Return the settings of one more line: `leadwire up` makes the SQLite file and starts its own broker."""
        return {}

    def broker_ends(self):
        """Return the ends that a broker meets, one after the other; each takes the line."""
        return (self.kill_broker, self.kill_broker)

    def kill_broker(self, line):
        """Kill the line's broker with SIGKILL; the supervisor starts it again, empty."""
        (broker,) = [pid for pid in processes_of(line.home) if b"unixsocket" in b"".join(command_of(pid))]
        os.kill(broker, signal.SIGKILL)


class WithRedis(House):
    """PostgreSQL and Redis."""

    name = "postgresql+redis"
    needs: ClassVar = ("postgres", "redis_server")

    @property
    def broker(self):
        return self.servers[self.needs[1]]

    @property
    def postgres(self):
        return self.servers["postgres"]

    def settings(self):
        """Return the settings of one more line: an empty database and an empty broker."""
        return {"LEADWIRE_DATABASE_URL": self.postgres.fresh(), "LEADWIRE_BROKER_URL": self.broker.new_url()}

    def broker_ends(self):
        """Return the ends that this broker meets."""
        return (self.kill_broker, self.empty_broker)

    def kill_broker(self, line):
        """Kill the server, and start it again empty."""
        self.broker.kill()
        self.broker.start_empty()

    def empty_broker(self, line):
        """Have the server forget everything while it runs."""
        self.broker.forget()

    def end_database(self):
        """Kill PostgreSQL with SIGKILL."""
        self.postgres.kill()


class WithRabbitMQ(WithRedis):
    """PostgreSQL and RabbitMQ."""

    name = "postgresql+rabbitmq"
    needs: ClassVar = ("postgres", "rabbitmq_server")

    def broker_ends(self):
        """Return the one end that this broker meets: it takes its time to come back."""
        return (self.kill_broker,)

    def end_database(self):
        """Stop PostgreSQL as an administrator does who cannot wait."""
        self.postgres.stop()


HOUSES = {house.name: house for house in (House, WithRedis, WithRabbitMQ)}
every_house = pytest.mark.houses(*HOUSES)
on_postgresql = pytest.mark.houses("postgresql+redis", "postgresql+rabbitmq")
on_rabbitmq = pytest.mark.houses("postgresql+rabbitmq")
