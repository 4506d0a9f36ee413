"""How Leadwire uses its broker, whichever it is: queues, Celery's settings, transports, and how deep a queue is.

Each setting stands beside the loss, duplicate or hang that it prevents (Celery 5.7, its documentation and experiments with
it). On RabbitMQ queues are quorum queues, the exchange is a topic exchange (as Celery's page on RabbitMQ advises), and who
publishes waits for the confirmation. No queue has a length limit or a time to live of its own: publishers look how deep a
queue is, messages carry their expiry, and a server that dropped or refused messages would only make work late.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from amqp import spec
from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES, pyamqp, redis
from kombu.transport.virtual import Channel as VirtualChannel

from rules.vocabulary import Problem, ProviderName, SettingsError

log = logging.getLogger(__name__)

EVENTS_QUEUE: Final = "leadwire.events"
#: One queue per provider, so that what waits for one never stands in front of the other.
QUEUE_OF: Final[Mapping[ProviderName, str]] = {name: f"leadwire.{name}" for name in ProviderName}
#: The queues of Leadwire's own work.
QUEUES: Final = (EVENTS_QUEUE, *QUEUE_OF.values())
#: Where tasks of LEADWIRE_IMPORTS go: many of them must not keep events waiting.
DEFAULT_QUEUE: Final = "leadwire.default"

_EXCHANGE: Final = "leadwire.work"
_QUORUM: Final = {"x-queue-type": "quorum"}
#: Celery reads these by itself, and they would win. Its command line sets them for options and for other variables.
_FOREIGN: Final = dict.fromkeys(
    ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"),
    "(or BROKER_URL, or --broker): ingress and workers find their broker by LEADWIRE_BROKER_URL alone",
) | {
    "CELERY_RESULT_BACKEND": "(or RESULT_BACKEND, or --result-backend): results stand in the ledger, see `leadwire tasks`",
    "CELERY_CONFIG_MODULE": "(or --config): Leadwire's own settings are used alone",
}
#: Every task's id begins so, and no other row's in Flower does.
TASK_ID_PREFIX: Final = "tk_"
#: Our own event. Its field `uuids` names tasks that were delivered; those with a row are SUCCESS by it.
DELIVERED_TOGETHER: Final = "task-delivered"


def celery_app(broker_url: str, *, confirm: bool = True) -> Celery:
    """Return a Celery application that can publish and read queue depths, without tasks; `worker/app.py` has the one with tasks.

    `confirm` and the exceptions are those of `celery_settings`.
    """
    app = Celery("leadwire", set_as_current=False)
    app.conf.update(celery_settings(broker_url, confirm=confirm))
    return app


def celery_settings(broker_url: str, *, confirm: bool) -> dict[str, Any]:
    """Return Celery's settings for this broker.

    `confirm`: RabbitMQ confirms every message. A worker's own application does without: it publishes only events for Flower and
    replies, and its main loop must not wait for a server that is short of memory.

    Raises SettingsError when Celery's own variables name another broker or a result backend.
    """
    _refuse_foreign_variables()
    _use_own_transports()
    broker_url, tls = _tls(broker_url)
    return {
        "broker_url": broker_url,
        "task_ignore_result": True,  # the ledger holds results
        "task_acks_late": False,  # a message is disposable: no redelivery, no visibility duplicates
        "task_publish_retry": False,  # the sweeper repeats; publishing must fail fast
        "broker_use_ssl": tls,
        "broker_pool_acquire_timeout": 2,  # else an exhausted pool blocks for ever
        "broker_connection_timeout": 2,
        "broker_connection_retry_on_startup": True,  # start while the broker is down
        "broker_connection_max_retries": None,  # else the worker gives up after about 45 minutes
        "broker_heartbeat": 30,  # RabbitMQ, the worker's connections; those that publish lean on the system's keepalive
        "broker_transport_options": _transport_options(broker_url, confirm=confirm),
        "worker_prefetch_multiplier": 1,  # do not hoard
        "worker_enable_prefetch_count_reduction": False,
        "worker_detect_quorum_queues": True,  # else a quorum queue refuses its consumer: 540 NOT_IMPLEMENTED
        # Celery makes 28 queues for tasks with a countdown, which we never send; as quorum queues that takes seconds.
        "broker_native_delayed_delivery_queue_type": "classic",
        # Exclusive to their connection: the only transient queues that RabbitMQ 4.3 still makes by default
        # (https://www.rabbitmq.com/docs/queues#transient-queues, removed features).
        "control_queue_exclusive": True,
        "event_queue_exclusive": True,
        # Any other pool is refused: the requests of one process share its connections, and its ledger writes one commit.
        "worker_pool": "threads",
        "worker_soft_shutdown_timeout": 0,  # warm shutdown waits for running calls; the supervisor bounds it
        "worker_consumer": "worker.flower_events:BatchingConsumer",  # sends events five times a second
        "worker_send_task_events": True,
        "task_send_sent_event": False,  # doubles the cost of publishing, and Flower does not need it
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # never end a call half-way
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "beat_scheduler": "worker.app:RefusedScheduler",  # several workers would each run the schedule
        "task_create_missing_queues": False,  # a misspelt queue raises instead of feeding one that nobody reads
        "task_default_queue": DEFAULT_QUEUE,
        "task_queues": [_queue(name, quorum=_is_amqp(broker_url)) for name in (*QUEUES, DEFAULT_QUEUE)],
    }


def _refuse_foreign_variables() -> None:
    for name, instead in _FOREIGN.items():
        if os.environ.get(name):
            raise SettingsError(f"{name} is set {instead}; unset it")


def _is_amqp(broker_url: str) -> bool:
    return broker_url.startswith("amqp")


def _queue(name: str, *, quorum: bool) -> Queue:
    """Return a queue; a virtual transport (Redis) knows no types of queues and finds a direct exchange's with less work."""
    if quorum:
        return Queue(name, Exchange(_EXCHANGE, type="topic"), routing_key=name, queue_arguments=_QUORUM)
    return Queue(name, Exchange(_EXCHANGE, type="direct"), routing_key=name)


def _tls(broker_url: str) -> tuple[str, dict[str, Any] | None]:
    """Return the URL and what kombu 5.7 needs beside it, so that TLS also proves whom we speak to.

    Without options it does not look at a Redis server's certificate at all, and not at the name in RabbitMQ's. What the
    query says (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`) it reads for Redis only.
    """
    parts = urlsplit(broker_url)
    if parts.scheme == "rediss":
        return broker_url, {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    if parts.scheme != "amqps":
        return broker_url, None
    query = {name.removeprefix("ssl_"): value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    options: dict[str, Any] = {"server_hostname": parts.hostname, **query}
    if query.get("cert_reqs") in {"none", "CERT_NONE"}:
        options |= {"cert_reqs": ssl.CERT_NONE, "server_hostname": None}
    else:
        options["cert_reqs"] = ssl.CERT_REQUIRED
    return urlunsplit(parts._replace(query="")), options


def _transport_options(broker_url: str, *, confirm: bool) -> dict[str, Any]:
    if _is_amqp(broker_url):
        return {"confirm_publish": confirm}  # without it a broker's crash loses what was "published"
    return {
        "socket_timeout": 5,  # default: none, and a frozen server hangs publishers for ever
        "socket_connect_timeout": 2,
        "health_check_interval": 10,  # a half-open connection is noticed in about 21 s
        "retry_on_timeout": False,  # no hidden second publish
        "visibility_timeout": 300,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "global_keyprefix": "leadwire:",
        **({} if broker_url.startswith("redis+socket") else {"socket_keepalive": True}),
    }


class QueueDepths:
    """Reads how many messages wait in each of `QUEUES`, over one kept connection. Not thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None

    def read(self) -> Mapping[str, int] | None:
        """Return the depth of each queue by name; None when the broker cannot be reached."""
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_read(connect_timeout=2)
            channel = self._connection.default_channel
            return {name: depth_of(channel, name) for name in QUEUES}
        except Exception as error:  # noqa: BLE001 - the transports share no root of exceptions; any of them means "not now"
            log.debug("queue depths are not to be had: %s", why(error))
            self.close()
            return None

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.release()


def depth_of(channel: Any, name: str) -> int:
    """Return a queue's depth; on RabbitMQ the queue exists afterwards, bound to its exchange.

    Redis is asked for the length itself: kombu's passive declaration overlooks `global_keyprefix` (kombu 5.7, EXISTS is not
    among the commands it prefixes) and takes every queue for one that does not exist. On RabbitMQ a passive declaration
    closes the channel when somebody deleted the queue; a plain one costs the same, makes it again and counts what is ready,
    confirmed messages at once. A queue with consumers was bound by them.
    """
    if isinstance(channel, VirtualChannel):
        return int(channel._size(name))  # noqa: SLF001 - the transport's own hook; there is no public one
    queue = channel.queue_declare(name, durable=True, auto_delete=False, arguments=_QUORUM)
    if not queue.consumer_count:
        _queue(name, quorum=True)(channel).declare()
    depth: int = queue.message_count
    return depth


def why(error: Exception) -> str:
    """Return why the broker cannot be used, for a log. Leaves out its URL, which may hold a password."""
    if isinstance(error, PreconditionFailed):
        return (
            f"{error.reply_text}: delete what stands there under this name (rabbitmqctl delete_queue, or the exchange "
            "in the management pages): Leadwire makes it as it must be, and the ledger holds all work"
        )
    return type(error).__name__


def declare(app: Celery) -> None:
    """Declare the queues. Raises Problem when queues of these names differ; an unreachable broker is ignored for now."""
    try:
        with app.connection_for_write(connect_timeout=2) as connection:
            for queue in app.amqp.queues.values():
                queue(connection.default_channel).declare()
    except PreconditionFailed as error:
        raise Problem(f"the broker's queues cannot be used: {why(error)}") from error
    except Exception as error:  # noqa: BLE001 - as in QueueDepths
        log.debug("queues are declared later: %s", why(error))


def wait_until_reachable(broker_url: str, timeout_seconds: float) -> bool:
    """Return whether the broker can be reached within this time."""
    app = celery_app(broker_url)
    give_up_at = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up_at:
        try:
            with app.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                return True
        except Exception:  # noqa: BLE001 - as in QueueDepths
            time.sleep(0.1)
    return False


# Transports

#: How long RabbitMQ may take to answer; a confirmed message of a quorum queue takes milliseconds.
ANSWER_SECONDS: Final = 5.0
#: And how long to a goodbye, which changes nothing.
GOODBYE_SECONDS: Final = 1.0
_CONFIRMATIONS: Final = [spec.Basic.Ack, spec.Basic.Nack]


def _patience_seconds(method: Any) -> float:
    return GOODBYE_SECONDS if method in (spec.Channel.CloseOk, spec.Connection.CloseOk) else ANSWER_SECONDS


class _RabbitMQChannel(pyamqp.Channel):
    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        connection = self.connection
        while True:
            try:
                return super().wait(method, callback, timeout or _patience_seconds(method), returns_tuple)
            except TimeoutError:
                if method != _CONFIRMATIONS or not connection.is_blocked:
                    raise


class _RabbitMQConnection(pyamqp.Connection):
    Channel = _RabbitMQChannel
    is_blocked = False

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        return super().wait(method, callback, timeout or _patience_seconds(method), returns_tuple)

    def _on_blocked(self) -> None:
        self.is_blocked = True
        log.warning("the broker takes no messages: it is short of memory or disk; what is due waits in the ledger")

    def _on_unblocked(self) -> None:
        self.is_blocked = False
        log.warning("the broker takes messages again")


class RabbitMQTransport(pyamqp.Transport):
    """kombu's RabbitMQ transport with a limit to every wait; stands behind `amqp://`.

    py-amqp 5.4 waits for each answer of the server for ever. A server that is short of memory or disk stops reading from
    whoever publishes (https://www.rabbitmq.com/docs/alarms), and then not even a connection can be closed: the goodbye has
    an answer too. One exception: a publisher that was told of the alarm waits on, since a connection that it dropped would
    stay open at a server that does not read, and one more with every attempt.
    """

    Connection = _RabbitMQConnection


class RabbitMQSSLTransport(pyamqp.SSLTransport):
    """The same behind `amqps://`."""

    Connection = _RabbitMQConnection


class RedisChannel(redis.Channel):
    """A channel with one client instead of one per command; a reconnect makes a new pool, and with it a new client.

    kombu 5.7 makes a new `redis.Redis` object for every command (`Channel.conn_or_acquire`); making one fills a table of
    some 400 answer parsers, which costs several times the command itself. The object is a thin, thread-safe shell around
    the channel's connection pool, so it is kept for as long as that pool lives.
    """

    _kept: tuple[Any, Any] | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # the stubs know little of the transport
        pool = self.pool
        if self._kept is None or self._kept[0] is not pool:
            self._kept = (pool, super()._create_client())  # type: ignore[misc]  # as above
        return self._kept[1]


class RedisTransport(redis.Transport):
    """kombu's Redis transport with these channels; stands behind `redis://` and `rediss://`."""

    Channel = RedisChannel


def _use_own_transports() -> None:
    """Have kombu take these transports for the broker URLs of this process."""
    ours = {"amqp": RabbitMQTransport, "amqps": RabbitMQSSLTransport, "redis": RedisTransport, "rediss": RedisTransport}
    TRANSPORT_ALIASES.update({scheme: f"{__name__}:{transport.__name__}" for scheme, transport in ours.items()})
