"""A RabbitMQ that is short of memory: it takes no messages until it has room again."""

import time
import uuid

import pytest

from tests.flow.houses import on_rabbitmq
from tests.flow.processes import processes_of


@pytest.fixture
def alarm(house):
    """Give the switch of the alarm, off again after the test."""
    yield house.broker.alarm
    house.broker.alarm(on=False)


@on_rabbitmq
def test_senders_notice_nothing_of_an_alarm_and_all_work_is_done_after_it(own_line, alarm):
    """Under the alarm webhooks are answered at once, after it every task arrives, once; a stop under it ends in its time."""
    own_line.start()
    alarm(on=True)
    names = [post(own_line) for _ in range(20)]
    alarm(on=False)
    names += [post(own_line) for _ in range(20)]

    def arrived():
        return sorted(task["title"].removeprefix("Person ") for task in own_line.sandbox.tasks("vambe"))

    assert own_line.until(lambda: sorted(names) == arrived(), 40), set(names) - set(arrived())
    alarm(on=True)
    post(own_line)
    began = time.monotonic()
    assert 0 == own_line.stop()
    assert time.monotonic() - began < 30
    assert [] == processes_of(own_line.home)


def post(line):
    """Post an event, as patient as the most impatient senders, and return its contact's name."""
    name = uuid.uuid4().hex
    assert line.post(line.event("deal.created", name=name), patience_seconds=2).is_success
    return name
