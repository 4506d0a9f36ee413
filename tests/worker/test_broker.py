"""Queues on each of the real brokers."""

import json
import ssl
import threading
import time
import uuid

import pytest
from amqp.exceptions import NotFound
from kombu import Exchange, Queue

from rules.vocabulary import Problem, ProviderName, TaskType
from worker.broker import EVENTS_QUEUE, QUEUE_OF, QUEUES, QueueDepths, celery_app, declare, wait_until_reachable
from worker.ledger import TaskRef
from worker.publisher import DEPTH_LIMIT, Publisher
from worker.settings import Settings

EMPTY = dict.fromkeys(QUEUES, 0)
CALLS = QUEUE_OF[ProviderName.MINDHUNTERS]


@pytest.fixture(params=["redis", "valkey", "rabbitmq"])
def url(request):
    """Give the URL of an empty broker, as Celery gets it when the setting names it."""
    written = request.getfixturevalue(f"{request.param}_server").new_url()
    return Settings.from_environment({"LEADWIRE_BROKER_URL": written}).broker_url


@pytest.fixture
def rabbitmq_url(rabbitmq_server):
    """Give the URL of an empty virtual host."""
    return rabbitmq_server.new_url()


@pytest.fixture
def dispatcher_of():
    """Give a way to make dispatchers that are closed after the test."""
    made = []

    def make(url):
        app = celery_app(url)
        made.append((Publisher(app), app))
        return made[-1][0]

    yield make
    for publisher, app in made:
        publisher.close()
        app.pool.force_close_all()


def ref(number):
    """Return what a message says of a call."""
    mindhunters = ProviderName.MINDHUNTERS
    return TaskRef(
        id=f"tk_{number}",
        type=TaskType.MAKE_CALL,
        provider=mindhunters,
        rule="big-lead",
        name="call",
        attempts=0,
        epoch=0,
    )


def messages(url, queue):
    """Take every message out of a queue; returns their arguments."""
    app = celery_app(url)
    found = []
    with app.connection_for_read() as connection:
        bound = app.amqp.queues[queue](connection.default_channel)
        while (message := bound.get(no_ack=True)) is not None:
            found.append(json.loads(message.body)[0])
    return found


def settled(read, expected, seconds=10):
    """Read until it is as expected, and return it."""
    give_up_at = time.monotonic() + seconds
    while (found := read()) != expected and time.monotonic() < give_up_at:
        time.sleep(0.05)
    return found


def test_what_was_dispatched_stands_in_its_queue_and_is_counted(url, dispatcher_of):
    """On a broker that has never seen Leadwire, depths are zero, then the number of messages, and those carry the ids."""
    depths = QueueDepths(celery_app(url))
    assert EMPTY == depths.read()
    publisher = dispatcher_of(url)
    publisher.tasks([ref(1), ref(2)])
    publisher.events(["ev_1"])
    assert EMPTY | {EVENTS_QUEUE: 1, CALLS: 2} == settled(depths.read, EMPTY | {EVENTS_QUEUE: 1, CALLS: 2})
    assert [["tk_1"], ["tk_2"]] == messages(url, CALLS)
    assert [[["ev_1"]]] == messages(url, EVENTS_QUEUE)
    assert EMPTY == depths.read()
    depths.close()


def test_nothing_is_added_to_a_queue_that_is_deep(url, dispatcher_of):
    """While 200 messages stand in a queue nothing is added, whatever is dispatched; the other queues go on."""
    app = celery_app(url)
    with app.connection_for_write() as connection:
        producer = connection.Producer(connection.default_channel)
        queue = app.amqp.queues[CALLS]
        for _ in range(DEPTH_LIMIT):
            producer.publish([], exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue])
    publisher = dispatcher_of(url)
    publisher.tasks([ref(number) for number in range(50)])
    publisher.events(["ev_1"])
    depths = QueueDepths(app)
    expected = EMPTY | {EVENTS_QUEUE: 1, CALLS: DEPTH_LIMIT}
    assert expected == settled(depths.read, expected)
    publisher.close()
    assert expected == depths.read()
    depths.close()


def test_reachable_is_told_from_not(url):
    """A broker that runs is reachable; nobody listens on port 1."""
    assert wait_until_reachable(url, 5)
    assert not wait_until_reachable("redis://127.0.0.1:1/0", 0.2)
    assert not wait_until_reachable("amqp://127.0.0.1:1//", 0.2)


def test_rabbitmq_keeps_quorum_queues_on_a_durable_topic_exchange(rabbitmq_url):
    """What is declared is of the quorum type, and a topic exchange brings to it what carries its name."""
    app = celery_app(rabbitmq_url)
    declare(app)
    exchange = Exchange("leadwire.work", type="topic", durable=True)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        exchange(channel).declare()
        for name in QUEUES:
            Queue(name, exchange, routing_key=name, queue_arguments={"x-queue-type": "quorum"})(channel).declare()
        Queue("watcher", exchange, routing_key="leadwire.#", exclusive=True)(channel).declare()
        connection.Producer(channel).publish({}, exchange="leadwire.work", routing_key=CALLS)
        assert 1 == channel.queue_declare("watcher", passive=True).message_count
        assert 1 == channel.queue_declare(CALLS, passive=True).message_count


def test_queues_that_somebody_deleted_come_back(rabbitmq_url, dispatcher_of):
    """Depths are zero again after a deletion in mid-life, and what is dispatched then arrives."""
    depths = QueueDepths(celery_app(rabbitmq_url))
    publisher = dispatcher_of(rabbitmq_url)
    publisher.tasks([ref(1)])
    assert 1 == settled(lambda: depths.read()[CALLS], 1)
    app = celery_app(rabbitmq_url)
    with app.connection_for_write() as connection:
        for name in QUEUES:
            connection.default_channel.queue_delete(name)
        with pytest.raises(NotFound):
            connection.default_channel.queue_declare(CALLS, passive=True)
    assert EMPTY == depths.read()
    publisher.tasks([ref(2)])
    assert 1 == settled(lambda: depths.read()[CALLS], 1)
    assert [["tk_2"]] == messages(rabbitmq_url, CALLS)
    depths.close()


def test_a_queue_of_another_kind_is_named_with_the_remedy(rabbitmq_url):
    """Where a classic queue stands under our name the fault names it and says what to do; nothing raises elsewhere."""
    app = celery_app(rabbitmq_url)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare(CALLS, durable=True, auto_delete=False)
    with pytest.raises(Problem, match=rf"'{CALLS}'.*rabbitmqctl delete_queue"):
        declare(app)
    assert QueueDepths(app).read() is None


def test_a_broker_out_of_reach_is_left_for_later():
    """Declaring comes back without a fault when nobody listens: a worker starts while its broker is down."""
    declare(celery_app("amqp://guest:guest@127.0.0.1:1//"))


def test_under_an_alarm_nobody_waits_and_afterwards_it_goes_on(rabbitmq_server, dispatcher_of):
    """A server short of memory holds up the publisher alone; others close at once, and after the alarm all goes out."""
    url = rabbitmq_server.new_url()
    publisher = dispatcher_of(url)
    publisher.tasks([ref(1)])
    depths = QueueDepths(celery_app(url))
    assert 1 == settled(lambda: depths.read()[CALLS], 1)
    second = dispatcher_of(url)
    rabbitmq_server.alarm(on=True)
    try:
        for number in range(2, 5):
            publisher.tasks([ref(number)])
        second.events([uuid.uuid4().hex])
        assert 1 == depths.read()[CALLS]
        began = time.monotonic()
        second.close()
        assert time.monotonic() - began < 10
        blocked = celery_app(url, confirm=False).connection_for_write()
        blocked.Producer(blocked.default_channel).publish({}, exchange="leadwire.work", routing_key="leadwire.nobody")
        ended = threading.Thread(target=blocked.release, daemon=True)
        ended.start()
        ended.join(15)
        assert not ended.is_alive()
    finally:
        rabbitmq_server.alarm(on=False)
    assert 4 == settled(lambda: depths.read()[CALLS], 4)
    depths.close()


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_tls_works_with_the_servers_own_authority_and_not_without(request, name):
    """With `ssl_ca_certs` in its URL a server of one's own authority is used; without it nothing is said to it."""
    server = request.getfixturevalue(f"{name}_server")
    written = server.tls_url()
    trusted = f"{written}?ssl_ca_certs={server.certificate.authority}"
    urls = [Settings.from_environment({"LEADWIRE_BROKER_URL": one}).broker_url for one in (trusted, written)]
    assert [True, False] == [wait_until_reachable(url, seconds) for url, seconds in zip(urls, (5, 0.1), strict=True)]
    depths = QueueDepths(celery_app(urls[0]))
    assert EMPTY == depths.read()
    depths.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://cache/1", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://cache/1?ssl_ca_certs=/ca.pem", {"ssl_ca_certs": "/ca.pem"}),
        ("amqps://rabbit/v", {"server_hostname": "rabbit", "cert_reqs": ssl.CERT_REQUIRED}),
        (
            "amqps://rabbit/v?ssl_ca_certs=/ca.pem",
            {"server_hostname": "rabbit", "cert_reqs": ssl.CERT_REQUIRED, "ca_certs": "/ca.pem"},
        ),
        ("amqps://rabbit/v?ssl_cert_reqs=none", {"server_hostname": None, "cert_reqs": ssl.CERT_NONE}),
    ],
)
def test_tls_proves_the_server_unless_told_otherwise(url, expected):
    """A certificate is wanted and its name compared, whatever the transport's own default is."""
    assert expected == celery_app(url).connection_for_write().ssl
