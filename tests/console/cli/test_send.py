"""`send`: samples are signed so that their source believes them, and posted where the front door is."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from ingress import sources
from ingress.sources import Verified, WebhookRequest
from rules.loader import load

STANDARD_SECRET = "whsec_bm90LWEtc2VjcmV0LWJ1dC1sb25nLWVub3VnaA=="
SOURCES = """\
version: 1
sources:
  hubspot: {extend: hubspot, secrets: [{env: CRM_SECRET}]}
  partner: {extend: standard-webhooks, secrets: [{env: PARTNER_SECRET}]}
  own:
    auth: {hmac: {algorithm: sha256, key: {env: CRM_SECRET}, header: X-Signature, signed: [body]}}
    body: {format: form-brackets}
    split: "items[*]"
    event: {type: "{entity}.{action}", id: id, subject: {kind: lead, id: lead.id}}
    contact: {name: lead.name, phone: lead.phone}
    data: lead
"""


class FrontDoor(ThreadingHTTPServer):
    """A front door that answers every webhook alike and keeps what came."""

    status = 202

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.came = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.came.append(
            WebhookRequest(
                method="POST", path=parts.path, query_string=parts.query.encode(), headers=headers, body=body
            )
        )
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b'{"status":"accepted"}')

    def log_message(self, *_):
        """Stay quiet."""


@pytest.fixture
def front_door():
    """Return a front door that listens."""
    server = FrontDoor()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def all_sources(rules, monkeypatch):
    """Return the sources of the rules folder by name, as the ingress builds them."""
    (rules / "sources.yaml").write_text(SOURCES)
    monkeypatch.setenv("PARTNER_SECRET", STANDARD_SECRET)
    monkeypatch.setenv("LEADWIRE_PUBLIC_URL", "https://hooks.example.com")
    environment = {"CRM_SECRET": "not-a-secret-but-long-enough", "PARTNER_SECRET": STANDARD_SECRET}
    files = {path.name: path.read_text() for path in sorted(rules.iterdir())}
    built, faults = sources.build(load(files, environment).sources, environment, public_url="https://hooks.example.com")
    assert [] == faults
    return built


@pytest.mark.parametrize("name", ["crm", "hubspot", "partner", "own"])
def test_a_sample_is_believed_and_read_by_its_source(run, front_door, all_sources, name):
    """Whatever the scheme, the source verifies what `send` posts and reads an event from it."""
    said = run("send", name, "--url", front_door.url)

    (received,) = front_door.came
    source, now = all_sources[name], datetime.now(UTC)
    assert (0, f"/webhooks/{name}") == (said.code, received.path)
    assert isinstance(source.verify(received, now), Verified)
    assert 1 == len(source.read(received, now, lambda: "ev_1"))
    assert said.out.startswith("202  ")
    assert "leadwire explain --last" in said.err


def test_what_is_asked_for_is_in_the_sample(run, front_door, all_sources):
    """Value, name and phone of the sample are those that were asked for."""
    run("send", "crm", "--value", "9000", "--name", "Luz", "--phone", "+56922223333", "--url", front_door.url)

    (incoming,) = all_sources["crm"].read(front_door.came[0], datetime.now(UTC), lambda: "ev_1")
    assert ("Luz", "+56922223333", 9000) == (
        incoming.event.contact.name,
        incoming.event.contact.phone,
        incoming.event.data["value"],
    )


def test_a_type_chooses_the_sample(run, front_door, all_sources):
    """`--type` takes the sample that is understood as that type; without one the known types are listed."""
    assert 0 == run("send", "hubspot", "--type", "deal.stage_changed", "--url", front_door.url).code

    said = run("send", "hubspot", "--type", "lead.replied", "--url", front_door.url)
    assert 1 == said.code
    assert "deal.stage_changed" in said.err


def test_twice_posts_the_same_bytes_again(run, front_door, all_sources):
    """`--twice` is a redelivery: the same request a second time; `--count` makes different ones."""
    run("send", "crm", "--twice", "--count", "2", "--url", front_door.url)

    bodies = [received.body for received in front_door.came]
    assert [True, False, True] == [one == other for one, other in pairwise(bodies)]


def test_a_file_is_posted_as_it_is(run, front_door, all_sources, folder):
    """`--body` signs and posts the bytes of a file, whatever they are."""
    (folder / "odd.bin").write_bytes(b"\xff\x00 odd")

    said = run("send", "own", "--body", "odd.bin", "--url", front_door.url)

    assert 0 == said.code
    assert b"\xff\x00 odd" == front_door.came[0].body


def test_an_answer_that_is_no_success_is_a_fault(run, front_door, all_sources):
    """Exit code 0 is for 2xx alone."""
    front_door.status = 401

    said = run("send", "crm", "--url", front_door.url)

    assert 1 == said.code
    assert said.out.startswith("401  ")


def test_a_running_instance_is_found_by_itself(run, front_door, all_sources, folder):
    """Without --url the `leadwire up` that runs in the data folder is posted to."""
    (folder / "home").mkdir()
    (folder / "home" / "up.json").write_text(json.dumps({"url": front_door.url, "pid": 1}))

    assert 0 == run("send", "crm").code
    assert 1 == len(front_door.came)


def test_nobody_listening_says_how_to_start(run, front_door, all_sources):
    """A refused connection is told with the way on."""
    front_door.server_close()

    said = run("send", "crm", "--url", front_door.url)

    assert 1 == said.code
    assert "leadwire up" in said.err


def test_an_unknown_source_lists_the_known_ones(run, all_sources):
    """A source that is not configured is a fault that names those that are."""
    said = run("send", "nobody")

    assert 1 == said.code
    assert "crm, hubspot, partner, own" in said.err


def test_a_source_without_its_secret_cannot_be_played(run, all_sources, monkeypatch):
    """Where the source's secret is not set, its fault is told with its place."""
    monkeypatch.delenv("PARTNER_SECRET")

    said = run("send", "partner")

    assert 1 == said.code
    assert "PARTNER_SECRET" in said.err


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://127.0.0.1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_told_in_words(run, all_sources, url):
    """An unusable --url is a message, not a traceback."""
    said = run("send", "crm", "--url", url)

    assert 1 == said.code
    assert said.err.strip()
