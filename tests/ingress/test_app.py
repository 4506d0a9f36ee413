"""The public port over Flask: routes, statuses, limits, and who is told what."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from itertools import count

import httpx
import pytest
import waitress
from flask import Flask

from ingress.app import create_app
from ingress.request_counts import RequestCounts
from rules.vocabulary import LedgerBusyError
from worker.ledger import Ledger, migrate, open_ledger

SECRET = "fake-secret-of-the-tests"
ENV = {"KEY": SECRET}
GENERIC = "{extend: generic, secrets: [{env: KEY}]}"
META = """
{extend: generic, secrets: [{env: KEY}], verify_token: {env: KEY}, handshake: [{get_echo: {}}, {options: {}}]}
"""
BODY = b'{"event": "lead.created", "event_id": "e1", "contact": {"phone": "+56911112222"}}'
HEADERS = {"X-Webhook-Secret": SECRET, "Content-Type": "application/json"}


class Post:
    """A dispatcher that remembers."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def events(self, ids) -> None:
        """Take the ids."""
        self.ids += ids


class FullDisk:
    """A ledger that cannot be written."""

    @property
    def inbox(self):
        """Its inbox."""
        return self

    def record(self, delivery, events):
        """Refuse."""
        raise LedgerBusyError("the disk is full")

    def check_writable(self) -> None:
        """Refuse."""
        raise LedgerBusyError("the disk is full")


def _counted(counts: RequestCounts):
    with counts.paused() as counted:
        return counted


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    """Return a real, empty ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    opened = open_ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def make_app(ledger, make_source, now):
    """Return a function that makes the application, with a real ledger unless told otherwise."""
    numbers = count(1)

    def make(**changed: object) -> Flask:
        sources = {"crm": make_source(GENERIC, ENV), "meta": make_source(META, ENV, name="meta")}
        given = {"sources": sources, "ledger": ledger, "publisher": Post(), "counts": RequestCounts(None), **changed}
        app = create_app(**given, now=lambda: now, new_id=lambda: f"ev_{next(numbers)}")
        app.counts = partial(_counted, given["counts"])
        return app

    return make


def test_a_webhook_is_accepted_once(make_app, ledger) -> None:
    """The first is new, the second a duplicate; the event is in the ledger and its id went to the broker."""
    post = Post()
    app = make_app(publisher=post)
    first, second = (app.test_client().post("/webhooks/crm", data=BODY, headers=HEADERS) for _ in range(2))

    assert (200, {"status": "accepted", "events": 1, "duplicates": 0}) == (first.status_code, first.json)
    assert (200, {"status": "accepted", "events": 0, "duplicates": 1}) == (second.status_code, second.json)
    (stored,) = ledger.queries.list_events()
    assert ("lead.created", "+56911112222") == (stored.event.type, stored.event.contact.phone)
    assert [stored.id] == post.ids
    assert {("crm", "accepted", ""): 2} == app.counts()
    assert ("nosniff", "no-store") == (first.headers["X-Content-Type-Options"], first.headers["Cache-Control"])


def test_what_is_refused_is_json_and_counted(make_app, ledger) -> None:
    """Wrong secret, unknown source, wrong method, unknown page: a reason, no list of what there is, nothing stored."""
    app = make_app()
    client = app.test_client()
    wrong = client.post("/webhooks/crm", data=BODY, headers={"X-Webhook-Secret": "wrong"})
    unknown = client.post("/webhooks/nobody", data=BODY, headers=HEADERS)

    assert (401, {"status": "rejected", "reason": "mismatch"}) == (wrong.status_code, wrong.json)
    assert 404 == unknown.status_code
    assert "crm" not in unknown.text
    assert "meta" not in unknown.text
    assert (404, "not found") == ((gone := client.get("/nothing")).status_code, gone.json["reason"])
    for method in ("get", "put", "delete", "patch", "head", "options"):
        assert 405 == getattr(client, method)("/webhooks/crm").status_code
    assert (405, True) == ((refused := client.post("/healthz")).status_code, "GET" in refused.headers["Allow"])
    assert [] == list(ledger.queries.list_events())
    for number in range(20):
        client.post(f"/webhooks/made-up-{number}", data=BODY, headers=HEADERS)
    assert (1, 21) == (app.counts()["crm", "rejected", "mismatch"], app.counts()["(unknown)", "unknown_source", ""])
    assert {"crm", "(unknown)"} == {source for source, _, _ in app.counts()}


@pytest.mark.parametrize(
    "path", ["/webhooks/%ff", "/webhooks/a%2Fb", "/webhooks/", "/webhooks/crm%00", "/webhooks/" + "a" * 3000, "//"]
)
def test_odd_addresses_are_404(path, make_app) -> None:
    """No address makes a fault."""
    assert 404 == make_app().test_client().post(path, data=BODY, headers=HEADERS).status_code


def test_handshakes(make_app) -> None:
    """GET and OPTIONS are answered where the source has them."""
    client = make_app().test_client()
    echo = client.get(f"/webhooks/meta?hub.mode=subscribe&hub.verify_token={SECRET}&hub.challenge=1158201444")
    options = client.options(
        "/webhooks/meta", headers={"WebHook-Request-Origin": "e.example.com", "WebHook-Request-Rate": "5"}
    )

    assert (200, "1158201444", "text/plain; charset=utf-8") == (
        echo.status_code,
        echo.text,
        echo.headers["Content-Type"],
    )
    assert 403 == client.get("/webhooks/meta?hub.verify_token=x&hub.challenge=1").status_code
    assert 405 == client.get("/webhooks/meta").status_code
    assert (200, "e.example.com", "*") == (
        options.status_code,
        options.headers["WebHook-Allowed-Origin"],
        options.headers["WebHook-Allowed-Rate"],
    )


def test_without_sources_senders_come_again(make_app) -> None:
    """While no valid set exists a webhook is busy, never unknown; so the sender keeps it."""
    app = make_app(sources=None)
    reply = app.test_client().post("/webhooks/crm", data=BODY, headers=HEADERS)
    ready = app.test_client().get("/readyz")

    assert (503, "10") == (reply.status_code, reply.headers["Retry-After"])
    assert (503, "not ready") == (ready.status_code, ready.json["status"])
    assert "leadwire check" in ready.json["reasons"][0]
    assert 200 == app.test_client().get("/healthz").status_code


def test_sources_may_change_while_running(make_app, make_source) -> None:
    """Given as a function they are asked for at every request."""
    in_force = {}
    app = make_app(sources=lambda: in_force)

    assert 404 == app.test_client().post("/webhooks/crm", data=BODY, headers=HEADERS).status_code
    in_force["crm"] = make_source(GENERIC, ENV)
    assert 200 == app.test_client().post("/webhooks/crm", data=BODY, headers=HEADERS).status_code


def test_readiness_asks_the_ledger(make_app) -> None:
    """Ready means that a webhook could be recorded now, be there no source at all."""
    assert (200, {"status": "ready"}) == (
        (good := make_app(sources={}).test_client().get("/readyz")).status_code,
        good.json,
    )
    full = make_app(ledger=FullDisk()).test_client()

    assert (503, ["the disk is full"]) == ((bad := full.get("/readyz")).status_code, bad.json["reasons"])
    assert (503, "10") == (
        (busy := full.post("/webhooks/crm", data=BODY, headers=HEADERS)).status_code,
        busy.headers["Retry-After"],
    )
    assert 200 == full.get("/healthz").status_code


def test_a_fault_of_ours_is_no_traceback(make_app) -> None:
    """Even a fault outside the handling of a webhook asks the sender to come again."""

    def broken() -> None:
        raise RuntimeError("secret detail")

    reply = make_app(sources=broken).test_client().post("/webhooks/crm", data=BODY, headers=HEADERS)

    assert 503 == reply.status_code
    assert "secret detail" not in reply.text


def test_forms_are_read_raw(make_app, ledger) -> None:
    """The framework parses nothing: a form with a thousand fields is one event."""
    body = "&".join(["event=lead.created", *(f"custom[{number}]=x" for number in range(1000))])
    headers = {**HEADERS, "Content-Type": "application/x-www-form-urlencoded"}
    reply = make_app().test_client().post("/webhooks/crm", data=body, headers=headers)

    assert 200 == reply.status_code
    assert 1000 == len(next(iter(ledger.queries.list_events())).event.data["custom"])


def test_it_runs_under_any_wsgi_server(make_app, ledger) -> None:
    """Under waitress a webhook is recorded before its 2xx, its event published, and other pages are there."""
    post = Post()
    server = waitress.create_server(make_app(publisher=post), host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.effective_port}"
        with httpx.Client(trust_env=False) as client:
            first, second = (client.post(f"{url}/webhooks/crm", content=BODY, headers=HEADERS) for _ in range(2))
            assert 200 == client.get(f"{url}/readyz").status_code
    finally:
        server.close()
        thread.join(5)

    assert (200, {"status": "accepted", "events": 1, "duplicates": 0}) == (first.status_code, first.json())
    assert {"status": "accepted", "events": 0, "duplicates": 1} == second.json()
    assert [event.id for event in ledger.queries.list_events()] == post.ids
