"""docker-compose.yml at work: each service's command and health check as processes, over a real Redis and PostgreSQL.

The tests stand in the order of a deployment's life: they share one stack, and the last ones end it.
"""

import time
import uuid

import httpx
import pytest

from tests.deploy.containers import Stack, seconds
from worker.ledger import open_ledger
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox

STAYING = ("ingress", "worker", "flower")


@pytest.fixture(scope="module")
def sandbox():
    """Give both providers."""
    sandbox = Sandbox()
    sandbox.start()
    yield sandbox
    sandbox.stop()


@pytest.fixture(scope="module")
def stack(tmp_path_factory, sandbox):
    """Give the started stack."""
    providers = {
        "LEADWIRE_MINDHUNTERS_URL": sandbox.mindhunters_url,
        "LEADWIRE_MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN,
        "LEADWIRE_VAMBE_URL": sandbox.vambe_url,
        "LEADWIRE_VAMBE_API_KEY": VAMBE_API_KEY,
    }
    stack = Stack(tmp_path_factory.mktemp("stack"), providers)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


def until(condition, patience_seconds=30.0):
    """Wait until the condition gives something true, and return it."""
    give_up_at = time.monotonic() + patience_seconds
    while not (found := condition()) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return found


def post(stack, name, secret=None):
    """Post a big lead as the example's source expects it, twice with the same id."""
    secret = secret or stack.services["ingress"]["environment"]["CRM_SECRET"]
    lead = {"name": name, "phone": "+56911112222"}
    body = {"event": "lead.created", "event_id": uuid.uuid4().hex, "contact": lead, "data": {"value": 12000}}
    answers = [
        httpx.post(f"{stack.url()}/webhooks/crm", json=body, headers={"X-Webhook-Secret": secret}, timeout=20)
        for _ in range(2)
    ]
    return {answer.status_code for answer in answers}


def titles(sandbox, name):
    """Return what the providers hold for this name."""
    return sorted(
        task["title"]
        for provider in ("mindhunters", "vambe")
        for task in sandbox.tasks(provider)
        if task["title"].endswith(name)
    )


def test_everything_starts_in_order_and_is_healthy(stack):
    """What runs once has ended well, and every health check of what stays passes, for each replica."""
    for name in ("check", "migrate"):
        assert 0 == stack.one(name).ended(), stack.one(name).log.read_text()
    for name in ("redis", "postgres", *STAYING):
        for container in stack.containers[name]:
            container.wait_until_healthy()
    assert 2 <= len(stack.containers["worker"])


def test_a_signed_webhook_becomes_tasks_once(stack, sandbox):
    """A lead that is posted twice, signed, leads to its three tasks at their providers, each once; the ledger is PostgreSQL."""
    name = uuid.uuid4().hex
    assert {200} == post(stack, name)
    expected = [f"Call {name}", f"Follow up: {name}", f"Welcome {name}"]
    assert until(lambda: expected == titles(sandbox, name)), (
        titles(sandbox, name),
        stack.one("worker").log.read_text(),
    )
    ledger = open_ledger(stack.database_url)
    try:
        assert until(lambda: 3 == len([task for task in ledger.queries.list_tasks() if task.external_id]))
    finally:
        ledger.close()


def test_a_wrong_secret_is_refused(stack, sandbox):
    """What is not signed with the source's secret gets 401 and leads to nothing."""
    name = uuid.uuid4().hex
    assert {401} == post(stack, name, secret="not-the-secret")
    assert [] == titles(sandbox, name)


def test_flower_asks_for_the_token(stack):
    """Flower answers on its own port, only with the operator token."""
    address = f"{stack.url('FLOWER_PORT')}/workers"
    token = stack.variables["LEADWIRE_OPERATOR_TOKEN"]
    assert 401 == httpx.get(address, timeout=10).status_code
    assert 401 == httpx.get(address, auth=("operator", "wrong"), timeout=10).status_code
    assert 200 == httpx.get(address, auth=("operator", token), timeout=10).status_code


def test_the_operator_port_answers(stack):
    """The ingress's metrics are there on the operator port, with the token and not without."""
    address = f"{stack.url('OPERATOR_PORT')}/metrics"
    token = stack.variables["LEADWIRE_OPERATOR_TOKEN"]
    assert 401 == httpx.get(address, timeout=10).status_code
    assert 200 == httpx.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code


def test_nothing_is_written_outside_what_a_container_has(stack):
    """Roles write to their temporary folder and their home only, and leave no secret there."""
    secrets = [MINDHUNTERS_TOKEN, VAMBE_API_KEY, *stack.services["ingress"]["environment"]["CRM_SECRET"].split()]
    for name in STAYING:
        for container in stack.containers[name]:
            for file in (one for one in container.folder.rglob("*") if one.is_file()):
                text = file.read_bytes()
                assert not [secret for secret in secrets if secret.encode() in text], file


def test_a_broker_that_is_away_is_told_and_restarts_nobody(stack):
    """With Redis gone a worker says so to its health check, is still alive to the lenient one, and comes back by itself."""
    redis, worker = stack.one("redis"), stack.one("worker")
    assert 0 == redis.stop()
    said = until(lambda: (health := worker.health()).returncode == 1 and health)
    assert said
    assert "broker" in said.stderr
    lenient = [*worker.service["healthcheck"]["test"][1:], "--alive"]
    assert 0 == worker.run(*lenient).returncode
    redis.start()
    worker.wait_until_healthy()


def test_webhooks_are_recorded_while_the_broker_was_away(stack, sandbox):
    """After that the line works as before."""
    name = uuid.uuid4().hex
    assert {200} == post(stack, name)
    assert until(lambda: 3 == len(titles(sandbox, name)), 60), stack.one("worker").log.read_text()[-3000:]


@pytest.mark.parametrize("name", ["flower", "worker", "ingress", "redis"])
def test_each_ends_within_its_grace_period(stack, name):
    """Each container ends by itself after SIGTERM, well, within the time it is given; its health check then fails."""
    for container in stack.containers[name]:
        began = time.monotonic()
        code = container.stop()
        assert 0 == code, f"{container.name} ended with {code}:\n{container.log.read_text()[-3000:]}"
        assert time.monotonic() - began < seconds(container.service["stop_grace_period"])
        assert 0 != container.health().returncode
