"""The operator port over real waitress: who is let in, what is said, and that nobody waits for long."""

from __future__ import annotations

import http.client
import json
import threading
import time
from base64 import b64encode
from datetime import timedelta
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text
from pydantic import SecretStr

from console.operator import OperatorServer, SnapshotReader, create_operator_app
from ingress.request_counts import RequestCounts
from rules.vocabulary import LedgerBusyError, ProviderName
from worker.ledger import migrate, open_ledger

TOKEN = "fake-token-of-the-tests"
LET_IN = {"Authorization": f"Bearer {TOKEN}"}


class Locked:
    """A ledger that cannot be read."""

    @property
    def queries(self):
        """Its reads."""
        return self

    def measure(self, now):
        """Refuse."""
        raise LedgerBusyError("the ledger cannot be used right now: database is locked")


class Silent:
    """A ledger that never answers."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.queries = self

    def measure(self, now):
        """Hang."""
        assert self.end.wait(30)
        raise LedgerBusyError("at last")


@pytest.fixture
def ledger(tmp_path):
    """Return a real, empty ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    opened = open_ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def serve(ledger, now):
    """Return a function that serves the operator port, with a real ledger unless told otherwise, and tells its URL."""
    servers = []

    def start(*, token=TOKEN, reasons=list, patience_seconds=8.0, **changed):
        requests = RequestCounts(ledger.inbox)
        for named, number in changed.pop("counted", {}).items():
            for _ in range(number):
                requests.add(*named)
        given = {
            "ledger": ledger,
            "requests": requests,
            "now": lambda: now,
            "queues": lambda: {"leadwire.events": 3},
            "sources": ["crm"],
            "refused": False,
        }
        watch = SnapshotReader(**{**given, **changed}, patience_seconds=patience_seconds)
        server = OperatorServer(
            create_operator_app(watch=watch, token=SecretStr(token), reasons=reasons), "127.0.0.1", 0
        )
        server.start()
        servers.append(server)
        return f"http://{server.host}:{server.port}"

    yield start
    for server in servers:
        server.close()


def basic(name, password):
    """Return the header of Basic credentials."""
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize("path", ["/metrics", "/status"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (LET_IN, 200),
        ({"Authorization": f"bearer  {TOKEN}"}, 200),
        (basic("operator", TOKEN), 200),
        (basic("", TOKEN), 200),
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Digest {TOKEN}"}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"Authorization": "Basic ****"}, 401),
        ({"Authorization": "Basic " + b64encode(TOKEN.encode()).decode()}, 401),
        (basic(TOKEN, ""), 401),
    ],
)
def test_only_the_token_lets_in(serve, path, headers, status) -> None:
    """As bearer token or as password of any user; everything else is a 401 that says what is wanted, and no more."""
    answer = httpx.get(serve() + path, headers=headers)

    assert status == answer.status_code
    assert ("nosniff", "no-store") == (answer.headers["X-Content-Type-Options"], answer.headers["Cache-Control"])
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    if status == 401:
        assert ["Bearer", "Basic"] == [each.split()[0] for each in answer.headers.get_list("WWW-Authenticate")]
        assert TOKEN not in answer.text


def test_an_odd_token_is_a_token(serve) -> None:
    """A token may hold whatever a setting can."""
    url = serve(token="pässwort: mit ")
    assert 200 == httpx.get(url + "/status", headers=basic("operator", "pässwort: mit ")).status_code
    assert 401 == httpx.get(url + "/status", headers=basic("operator", "passwort: mit ")).status_code


def test_health_needs_no_token(serve) -> None:
    """A probe learns that the process answers; other pages and methods are refused in words."""
    url = serve(ledger=Locked())

    assert {"status": "ok"} == httpx.get(url + "/healthz").json()
    assert 404 == httpx.get(url + "/", headers=LET_IN).status_code
    refused = httpx.post(url + "/metrics", headers=LET_IN)
    assert (405, "GET, HEAD") == (refused.status_code, refused.headers["Allow"])
    assert 503 == httpx.head(url + "/metrics", headers=LET_IN).status_code


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8,*/*;q=0.1", "text/plain; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("application/openmetrics-text; version=nonsense", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_form_is_the_one_asked_for(serve, accept, kind) -> None:
    """Prometheus gets the form it asks for, and every form can be read back."""
    answer = httpx.get(serve() + "/metrics", headers={**LET_IN, **({"Accept": accept} if accept else {})})

    assert answer.headers["Content-Type"].startswith(kind)
    read = open_metrics if "openmetrics" in kind else plain_text
    families = {family.name: family for family in read(answer.text)}
    assert families["leadwire_broker_up"].samples[0].value == 1


def test_status_tells_what_is_wrong(serve, ledger, now) -> None:
    """Who is paused and why in one word, what rules are in force and whether the folder was refused, and no provider's words."""
    ledger.rule_sets.store("rs_1", {"a.yaml": ""}, now)
    ledger.limits.pause(ProviderName.VAMBE, now + timedelta(hours=1), "401 for ana@example.com", now)
    url = serve(refused=True, reasons=lambda: ["the ledger cannot be written"])
    answer = httpx.get(url + "/status", headers=LET_IN)
    said = answer.json()

    assert "ana@example.com" not in answer.text
    assert (False, ["the ledger cannot be written"]) == (said["ready"], said["reasons"])
    assert {"version": "rs_1", "accepted_at": "2026-03-02T13:00:00.000Z", "folder_refused": True} == said["rules"]
    assert [
        {"name": "mindhunters", "paused": False},
        {"name": "vambe", "paused": True, "until": "2026-03-02T14:00:00.000Z", "by": "person", "http_status": None},
    ] == said["providers"]
    assert {"reachable": True, "queues": {"leadwire.events": 3}} == said["broker"]


def test_a_ledger_that_cannot_be_read_is_a_503(serve) -> None:
    """The reason is told; health goes on."""
    url = serve(ledger=Locked())
    for path in ("/metrics", "/status"):
        answer = httpx.get(url + path, headers=LET_IN)
        assert (503, "not readable") == (answer.status_code, answer.json()["status"])
        assert "database is locked" in answer.json()["reason"]


def test_a_ledger_that_hangs_keeps_nobody_waiting(serve) -> None:
    """Each scrape ends in its time, and others go on meanwhile."""
    silent = Silent()
    url = serve(ledger=silent, patience_seconds=0.1)
    began_seconds = time.monotonic()
    answers = [httpx.get(url + "/metrics", headers=LET_IN) for _ in range(3)]
    assert 200 == httpx.get(url + "/healthz").status_code
    silent.end.set()

    assert [503] * 3 == [answer.status_code for answer in answers]
    assert "has not answered" in answers[0].json()["reason"]
    assert time.monotonic() - began_seconds < 10


def test_a_broker_that_hangs_is_down(serve, monkeypatch) -> None:
    """A broker that does not answer counts as one that cannot be reached, and its queues are absent."""
    monkeypatch.setattr("console.operator.BROKER_PATIENCE_SECONDS", 0.05)
    end = threading.Event()
    url = serve(queues=lambda: end.wait(10) or None)
    text = httpx.get(url + "/metrics", headers=LET_IN).text
    end.set()

    assert "leadwire_broker_up 0.0" in text
    assert "leadwire_queue_messages{" not in text


def test_requests_that_are_not_in_the_ledger_yet_are_shown(serve, ledger) -> None:
    """Busy answers show while the ledger takes nothing: what it holds and what waits is added up."""
    busy = ("crm", "busy", "ledger_busy")
    ledger.inbox.count_requests({busy: 2})
    text = httpx.get(serve(counted={busy: 5}) + "/metrics", headers=LET_IN).text

    assert 'leadwire_webhook_requests_total{outcome="busy",reason="ledger_busy",source="crm"} 7.0' in text


def test_scrapes_shortly_after_one_another_read_once(serve, ledger, now, monkeypatch) -> None:
    """Many scrapes within the time that a reading is good for cost the ledger one reading."""
    monkeypatch.setattr(
        "console.operator.FRESH_SECONDS", 60.0
    )  # a busy machine may take longer than two seconds for five
    asked = []

    class Asked:
        """The ledger, with a count of what it is asked."""

        def measure(self, at):
            """Count and answer."""
            asked.append(at)
            return ledger.queries.measure(at)

    url = serve(ledger=SimpleNamespace(queries=Asked()))
    for _ in range(5):
        assert 200 == httpx.get(url + "/metrics", headers=LET_IN).status_code
    assert [now] == asked


def test_closing_is_quick_also_while_somebody_is_connected(serve) -> None:
    """A connection that is kept open holds nothing up, and the port is free afterwards."""
    server = OperatorServer(create_operator_app(watch=None, token=SecretStr(TOKEN), reasons=list), "127.0.0.1", 0)
    server.start()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/healthz")
    assert {"status": "ok"} == json.loads(connection.getresponse().read())
    server.close()
    connection.close()
    again = OperatorServer(
        create_operator_app(watch=None, token=SecretStr(TOKEN), reasons=list), server.host, server.port
    )
    again.start()
    again.close()


def test_a_fault_of_ours_is_told_without_its_words(serve, caplog) -> None:
    """Whatever goes wrong inside, the answer and the log name its kind only."""
    url = serve(now=lambda: int("nonsense from ana@example.com"))
    answer = httpx.get(url + "/status", headers=LET_IN)

    assert 503 == answer.status_code
    assert "ana@example.com" not in answer.text + caplog.text
    assert "ValueError" in answer.text
