"""kombu's Redis transport with one client per channel instead of one per command.

kombu 5.7 makes a new `redis.Redis` object for every command it sends (`Channel.conn_or_acquire`); making one fills a table
of some 400 answer parsers, which costs several times the command itself. The object is a thin, thread-safe shell around
the channel's connection pool, so it is kept for as long as that pool lives.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class Channel(redis.Channel):
    """A channel that keeps its client; a reconnect makes a new pool, and with it a new client."""

    _kept: tuple[Any, Any] | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # the stubs know little of the transport
        pool = self.pool
        if self._kept is None or self._kept[0] is not pool:
            self._kept = (pool, super()._create_client())  # type: ignore[misc]  # as above
        return self._kept[1]


class Transport(redis.Transport):
    """The transport behind `redis://` and `rediss://` once `use` was called."""

    Channel = Channel


def use() -> None:
    """Have kombu take this transport for its Redis URLs."""
    for name in ("redis", "rediss"):
        TRANSPORT_ALIASES[name] = f"{Transport.__module__}:{Transport.__qualname__}"
