"""The RabbitMQ transport whose waits end.

py-amqp 5.4 waits for every answer of the server without a limit. A server that is short of memory or disk stops reading
from whoever publishes (https://www.rabbitmq.com/docs/alarms), and then not even a connection can be closed: the goodbye has
an answer too. Here an answer has its time, with one exception: a publisher that was told of the alarm waits on, since a
dropped connection would stay open at a server that does not read, and one more with every attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from amqp import spec
from kombu.transport import TRANSPORT_ALIASES, pyamqp

log = logging.getLogger(__name__)

#: How long the server may take to answer; a confirmed message of a quorum queue takes milliseconds.
ANSWER_SECONDS: Final = 5.0
#: And a goodbye, which changes nothing.
GOODBYE_SECONDS: Final = 1.0
_CONFIRMATIONS: Final = [spec.Basic.Ack, spec.Basic.Nack]


def _patience_seconds(method: Any) -> float:
    return GOODBYE_SECONDS if method in (spec.Channel.CloseOk, spec.Connection.CloseOk) else ANSWER_SECONDS


class _Channel(pyamqp.Channel):
    def wait(
        self,
        method: Any,
        callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
    ) -> Any:
        connection = self.connection
        while True:
            try:
                return super().wait(method, callback, timeout or _patience_seconds(method), returns_tuple)
            except TimeoutError:
                if method != _CONFIRMATIONS or not connection.is_blocked:
                    raise


class _Connection(pyamqp.Connection):
    Channel = _Channel
    is_blocked = False

    def wait(
        self,
        method: Any,
        callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
    ) -> Any:
        return super().wait(method, callback, timeout or _patience_seconds(method), returns_tuple)

    def _on_blocked(self) -> None:
        self.is_blocked = True
        log.warning("the broker takes no messages: it is short of memory or disk; what is due waits in the ledger")

    def _on_unblocked(self) -> None:
        self.is_blocked = False
        log.warning("the broker takes messages again")


class Transport(pyamqp.Transport):
    """What `amqp://` means."""

    Connection = _Connection


class SSLTransport(pyamqp.SSLTransport):
    """What `amqps://` means."""

    Connection = _Connection


def use() -> None:
    """Have every `amqp://` and `amqps://` URL of this process mean these transports."""
    TRANSPORT_ALIASES.update({"amqp": f"{__name__}:Transport", "amqps": f"{__name__}:SSLTransport"})
