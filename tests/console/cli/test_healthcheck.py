"""`leadwire healthcheck`: what a probe is told, over real ports and files."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from console.cli import main
from worker.runtime import HealthReport


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run `leadwire` with these arguments in an empty folder; returns its exit code and what it said on standard error."""
    monkeypatch.chdir(tmp_path)

    def leadwire(*arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"LEADWIRE_{name}", str(value))
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return end.value.code, capsys.readouterr().err

    return leadwire


class Answers(BaseHTTPRequestHandler):
    """Lives, is not ready, and is Flower."""

    def do_GET(self):
        status = {"/healthz": 200, "/readyz": 503, "/healthcheck": 200}.get(self.path, 404)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"reasons":["the ledger is away"]}' if status == 503 else b"OK")

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def port():
    """Give the port of a server that lives and is not ready."""
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_ingress_that_lives_but_is_not_ready(run, port):
    """The strict check fails with the server's own words; the lenient one passes; every address includes loopback."""
    code, said = run("healthcheck", "ingress", PORT=port, HOST="0.0.0.0")
    assert (1, True) == (code, "503" in said and "the ledger is away" in said)
    assert (0, "") == run("healthcheck", "ingress", "--alive")


def test_flower_is_asked_on_its_own_port(run, port):
    """Flower's check goes to its port on the operator's address."""
    assert (0, "") == run("healthcheck", "flower", FLOWER_PORT=port)


@pytest.mark.parametrize("role", ["ingress", "flower"])
def test_nobody_there_is_a_fault(run, role):
    """Where nothing listens the check fails and says where it asked."""
    code, said = run("healthcheck", role, PORT=1, FLOWER_PORT=1)
    assert (1, True) == (code, "http://127.0.0.1:1/" in said)


def test_a_worker_is_judged_by_its_file(run, tmp_path):
    """A good report passes, a bad one fails with its reason, and only the lenient check lets that pass."""
    file = tmp_path / "health"
    HealthReport(works=True).write(file)
    assert (0, "") == run("healthcheck", "worker", "--file", str(file))
    HealthReport(works=False, reason="the broker cannot be reached").write(file)
    code, said = run("healthcheck", "worker", "--file", str(file))
    assert (1, "the worker does not work: the broker cannot be reached\n") == (code, said)
    assert (0, "") == run("healthcheck", "worker", "--file", str(file), "--alive")


@pytest.mark.parametrize("arguments", [("worker",), ("ingress", "--file", "health"), ("redis",), ()])
def test_wrong_use_is_told(run, arguments):
    """A worker without its file, a file without a worker, and an unknown role are wrong use."""
    assert 2 == run("healthcheck", *arguments)[0]


def test_check_can_want_something_to_do(run, tmp_path):
    """`check --require-rules` takes an empty folder, and one without sources, for the mistake it is in a deployment."""
    rules = tmp_path / "rules.d"
    rules.mkdir()
    assert 0 == run("check", str(rules))[0]
    assert 1 == run("check", str(rules), "--require-rules")[0]
    (rules / "a.yaml").write_text(
        "version: 1\nrules:\n  - id: a\n    when: lead.created\n    then:\n"
        "      - team_task: {title: x, assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}\n"
    )
    assert 1 == run("check", str(rules), "--require-rules")[0]
    (rules / "b.yaml").write_text("version: 1\nsources: {crm: {extend: generic, secrets: [{env: CRM_SECRET}]}}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CRM_SECRET", "fake-secret-for-tests")
        assert 0 == run("check", str(rules), "--require-rules")[0]
