"""Messages on a real broker."""

import base64
import json
import subprocess
import time

import pytest
import redis

from console import local_broker
from ingress.processes import dies_with_me
from rules.vocabulary import ProviderName, TaskType
from worker.broker import EVENTS_QUEUE, QUEUE_OF, QueueDepths, celery_app, wait_until_reachable
from worker.ledger import TaskRef
from worker.publisher import IDS_PER_MESSAGE, Publisher


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Give the URL and the socket of a broker of this module's own."""
    folder = tmp_path_factory.mktemp("broker")
    path = local_broker.socket_path(folder)
    path.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        dies_with_me(local_broker.command(local_broker.find_server(), folder, path)), stdout=subprocess.DEVNULL
    )
    assert wait_until_reachable(local_broker.broker_url(path), 10)
    yield local_broker.broker_url(path), path
    process.kill()
    process.wait()


@pytest.fixture
def publisher(server):
    """Give a dispatcher on an empty broker."""
    with redis.Redis(unix_socket_path=str(server[1])) as client:
        client.flushall()
    publisher = Publisher(celery_app(server[0]))
    yield publisher
    publisher.close()


def messages(server, queue):
    """Return name, arguments and labels of every message in a queue, oldest first."""
    with redis.Redis(unix_socket_path=str(server[1])) as client:
        found = [json.loads(text) for text in reversed(client.lrange(f"leadwire:{queue}", 0, -1))]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in found]
    return [(message["headers"]["task"], body[0], body[1]) for message, body in zip(found, bodies, strict=True)]


def settled(read, enough):
    """Read until there is enough, and return it."""
    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at and not enough(read()):
        time.sleep(0.02)
    return read()


def ref(number, type_=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS):
    """Return what a message says of a task."""
    return TaskRef(id=f"tk_{number}", type=type_, provider=provider, rule="big-lead", name="call", attempts=0, epoch=0)


def test_a_task_travels_alone_with_safe_labels(server, publisher):
    """A delivery message carries one id, the rule and the attempt, on the queue of its provider."""
    publisher.tasks([ref(1), ref(2, TaskType.TEAM_TASK, ProviderName.VAMBE)])

    def read():
        return [messages(server, QUEUE_OF[name]) for name in ProviderName]

    expected = [
        [("leadwire.make_call", ["tk_1"], {"rule": "big-lead", "attempt": 1})],
        [("leadwire.team_task", ["tk_2"], {"rule": "big-lead", "attempt": 1})],
    ]
    assert expected == settled(read, all)


def test_a_crowd_of_tasks_travels_together(server, publisher):
    """When more than fifty wait, a message carries up to a hundred ids, and none is left out."""
    publisher.tasks([ref(number) for number in range(250)])

    def groups():
        found = [arguments[0] for _, arguments, _ in messages(server, QUEUE_OF[ProviderName.MINDHUNTERS])]
        return [[ids] if isinstance(ids, str) else ids for ids in found]

    found = settled(groups, lambda groups: 250 == sum(map(len, groups)))
    assert [100, 100] == [len(group) for group in found[:2]]
    assert {f"tk_{number}" for number in range(250)} == {task_id for group in found for task_id in group}


def test_the_only_one_of_its_type_travels_alone(server, publisher):
    """Among a crowd of calls a single WhatsApp message bears its own id, so that it has its own row in Flower."""
    publisher.tasks([*(ref(number) for number in range(20)), ref(77, TaskType.WHATSAPP_TEMPLATE)])
    expected = ("leadwire.whatsapp_template", ["tk_77"], {"rule": "big-lead", "attempt": 1})
    assert settled(lambda: expected in messages(server, QUEUE_OF[ProviderName.MINDHUNTERS]), lambda is_there: is_there)


def test_events_travel_in_groups(server, publisher):
    """Events waiting at the same time share messages of up to a hundred ids, each id once."""
    ids = [f"ev_{number}" for number in range(230)]
    publisher.events(ids)
    groups = settled(
        lambda: [arguments[0] for _, arguments, _ in messages(server, EVENTS_QUEUE)],
        lambda found: 230 == sum(map(len, found)),
    )
    assert ids == [event_id for group in groups for event_id in group]
    assert max(map(len, groups)) <= IDS_PER_MESSAGE


def test_depths_count_what_waits(server, publisher):
    """The depth of every queue is known, also of one that is empty."""
    publisher.tasks([ref(1), ref(2)])
    depths = QueueDepths(celery_app(server[0]))
    expected = {EVENTS_QUEUE: 0, QUEUE_OF[ProviderName.MINDHUNTERS]: 2, QUEUE_OF[ProviderName.VAMBE]: 0}
    assert expected == settled(depths.read, lambda found: found == expected)
    depths.close()


def test_without_a_broker_nobody_waits_and_nothing_raises(tmp_path):
    """With no broker there at all the callers return at once, and depths say that they are not to be had."""
    app = celery_app(local_broker.broker_url(tmp_path / "nowhere"))
    publisher = Publisher(app)
    for number in range(1000):
        publisher.tasks([ref(number)])
        publisher.events([f"ev_{number}"])
    assert QueueDepths(app).read() is None
    publisher.close()
