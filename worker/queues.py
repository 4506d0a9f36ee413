"""How the broker is spoken to, whichever it is: the queues, Celery's settings, and how deep a queue is.

Settings of Celery, each for the loss, duplicate or hang it prevents: Celery 5.7 documentation and experiments with it. On
RabbitMQ queues are of the quorum type, the exchange is of the topic type (as Celery's page on RabbitMQ advises) and who
publishes waits for the confirmation. No queue has a bound or a time to live of its own: publishers look how deep a queue
is, messages name the moment at which they expire, and a server that dropped or refused messages would only make work late.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport.virtual import Channel as VirtualChannel

from rules.vocabulary import Problem, ProviderName
from worker import rabbitmq, redis_transport

log = logging.getLogger(__name__)

EVENTS_QUEUE: Final = "leadwire.events"
#: One queue per provider, so that what waits for one never stands in front of the other.
QUEUE_OF: Final[Mapping[ProviderName, str]] = {name: f"leadwire.{name}" for name in ProviderName}


QUEUES: Final = (EVENTS_QUEUE, *QUEUE_OF.values())
_EXCHANGE: Final = "leadwire.work"
_QUORUM: Final = {"x-queue-type": "quorum"}


def celery_app(broker_url: str, *, confirm: bool = True) -> Celery:
    """Return a Celery application that can publish; `worker/celery_app.py` adds the tasks.

    `confirm` has RabbitMQ confirm every message. A worker's own application goes without: what it publishes itself are
    events for Flower and answers to it, and its main loop must not wait for a server that is short of memory.
    """
    rabbitmq.use()
    redis_transport.use()
    broker_url, tls = _tls(broker_url)
    app = Celery("leadwire", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,  # the ledger holds results
        result_backend=None,
        task_acks_late=False,  # a message is disposable: no redelivery, no visibility duplicates
        task_reject_on_worker_lost=False,
        task_publish_retry=False,  # the sweep repeats; publishing must fail fast
        broker_use_ssl=tls,
        broker_pool_acquire_timeout=2,  # else an exhausted pool blocks for ever
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,  # start while the broker is down
        broker_connection_max_retries=None,  # else the worker gives up after about 45 minutes
        broker_heartbeat=30,  # RabbitMQ, the worker's connections; those that publish lean on the system's keepalive
        broker_transport_options=_transport_options(broker_url, confirm=confirm),
        worker_prefetch_multiplier=1,  # do not hoard
        worker_enable_prefetch_count_reduction=False,
        worker_detect_quorum_queues=True,  # else a quorum queue refuses its consumer: 540 NOT_IMPLEMENTED
        # Celery makes 28 queues for tasks with a countdown, which we never send; of the quorum type that takes seconds.
        broker_native_delayed_delivery_queue_type="classic",
        # Exclusive to their connection: the only transient queues that RabbitMQ 4.3 still makes by default
        # (https://www.rabbitmq.com/docs/queues#transient-queues, removed features).
        control_queue_exclusive=True,
        control_queue_durable=False,
        event_queue_exclusive=True,
        event_queue_durable=False,
        worker_soft_shutdown_timeout=0,  # warm shutdown waits for running calls; the supervisor bounds it
        worker_consumer="worker.celery_consumer:Consumer",  # sends events at a pace
        worker_send_task_events=True,
        task_send_sent_event=False,  # doubles the cost of publishing, and Flower does not need it
        worker_cancel_long_running_tasks_on_connection_loss=False,  # never end a call half-way
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,  # a misspelt queue raises instead of feeding one that nobody reads
        task_default_queue=EVENTS_QUEUE,
        task_queues=[_queue(name, quorum=_is_amqp(broker_url)) for name in QUEUES],
        timezone="UTC",
        enable_utc=True,
    )
    return app


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
    options: dict[str, Any] = {
        "socket_timeout": 5,  # default: none, and a frozen server hangs publishers for ever
        "socket_connect_timeout": 2,
        "health_check_interval": 10,  # a half-open connection is noticed in about 21 s
        "retry_on_timeout": False,  # no hidden second publish
        "visibility_timeout": 300,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "global_keyprefix": "leadwire:",
    }
    if not broker_url.startswith("redis+socket"):
        options["socket_keepalive"] = True
    return options


class QueueDepths:
    """How many messages stand in each queue, asked over one connection that is kept; for one thread."""

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
        """Give the connection back."""
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
    """Say why the broker cannot be used, in words for a log; never with the URL, which may hold a password."""
    if isinstance(error, PreconditionFailed):
        return (
            f"{error.reply_text}: delete what stands there under this name (rabbitmqctl delete_queue, or the exchange "
            "in the management pages): Leadwire makes it as it must be, and the ledger holds all work"
        )
    return type(error).__name__


def declare(app: Celery) -> None:
    """Make the queues. Raises Problem when others stand under their names; a broker out of reach is left for later."""
    try:
        with app.connection_for_write(connect_timeout=2) as connection:
            for queue in app.amqp.queues.values():
                queue(connection.default_channel).declare()
    except PreconditionFailed as error:
        raise Problem(f"the broker's queues cannot be used: {why(error)}") from error
    except Exception as error:  # noqa: BLE001 - as in depths
        log.debug("queues are declared later: %s", why(error))


def wait_until_reachable(broker_url: str, timeout_seconds: float) -> bool:
    """Say whether the broker can be reached within this time."""
    app = celery_app(broker_url)
    give_up_at = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up_at:
        try:
            with app.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                return True
        except Exception:  # noqa: BLE001 - as in depths
            time.sleep(0.1)
    return False
