"""What is checked before anything starts."""

from __future__ import annotations

import socket
import stat
import threading
from contextlib import closing

import httpx
import pytest

from console.starting import bind_public_port, build_ingress, check_start
from rules.vocabulary import RuleError, SettingsError
from worker.ledger import migrate, open_ledger
from worker.ledger.counters import CounterName
from worker.settings import Settings

GOOD = "rules: [{id: a, when: lead.created, then: [{team_task: {title: Hi, priority: low, assign: [someone]}}]}]\n"


@pytest.fixture
def settings(tmp_path):
    """Return settings that miss nothing, with one good rule file."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(GOOD)
    return Settings.from_environment(
        {
            "LEADWIRE_HOME": str(tmp_path),
            "LEADWIRE_RULES": str(tmp_path / "rules"),
            "LEADWIRE_MINDHUNTERS_URL": "http://127.0.0.1:9/api/v1",
            "LEADWIRE_MINDHUNTERS_TOKEN": "not-a-token",
            "LEADWIRE_VAMBE_API_KEY": "not-a-key",
        }
    )


def test_good_rules_can_be_started(settings) -> None:
    """With everything set and rules that can be accepted there is nothing to say."""
    assert check_start(settings)


def test_faults_of_rules_and_sources_refuse_a_start_together(settings) -> None:
    """A start is refused once, with all that is wrong in the order of the files."""
    (settings.rules / "a.yaml").write_text("sources: {crm: {extend: generc}}\nwrong: 1\n")
    (settings.rules / "b.yaml").write_text("wrong: 1\n")

    with pytest.raises(RuleError) as told:
        check_start(settings)

    assert [("a.yaml", 1), ("a.yaml", 2), ("b.yaml", 1)] == [(fault.file, fault.line) for fault in told.value.faults]


def test_with_an_earlier_set_a_start_goes_on(settings, now, caplog) -> None:
    """Whatever has become of the folder, the last good set is there to work with."""
    migrate(settings.database_url)
    ledger = open_ledger(settings.database_url)
    ledger.rule_sets.store("rs_1", {"a.yaml": GOOD}, now)
    ledger.close()
    (settings.rules / "a.yaml").unlink()
    settings.rules.rmdir()

    assert not check_start(settings)
    assert "stays in force" in caplog.text


# The front door and the operator port beside it

SOURCES = "sources: {crm: {extend: generic, secrets: [{env: CRM_SECRET}]}}\n" + GOOD


@pytest.fixture
def open_door(settings):
    """Return a function that opens a front door on free ports, without a broker; it is closed afterwards."""
    (settings.rules / "a.yaml").write_text(SOURCES)
    opened = []

    def start(**changed):
        variables = {
            "CRM_SECRET": "fake-secret-of-the-tests",
            "LEADWIRE_HOME": str(settings.home),
            "LEADWIRE_RULES": str(settings.rules),
            "LEADWIRE_BROKER_URL": f"redis+socket://{settings.home}/no-broker",
            "LEADWIRE_PORT": "0",
            "LEADWIRE_OPERATOR_PORT": "0",
            **changed,
        }
        migrate(settings.database_url)
        read = Settings.from_environment(variables)
        door = build_ingress(read, bind_public_port(read))
        thread = threading.Thread(target=door.server.run)
        thread.start()
        opened.append((door, thread))
        return door

    yield start
    for door, thread in opened:
        door.server.close()
        thread.join(10)
        door.close()


def _asked(door, path, token):
    return httpx.get(
        f"http://127.0.0.1:{door.operator.port}{path}", headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )


def test_the_operator_port_is_there_with_a_token_of_its_own(settings, open_door) -> None:
    """Without a token in the settings the data folder keeps one; metrics and status are behind it, and not on the public port."""
    door = open_door()
    kept = settings.home / "operator-token"

    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
    assert 401 == _asked(door, "/metrics", "wrong").status_code
    answer = _asked(door, "/metrics", kept.read_text())
    assert (200, True) == (answer.status_code, "leadwire_broker_up 0.0" in answer.text)
    said = _asked(door, "/status", kept.read_text()).json()
    assert (True, False, False) == (said["ready"], said["rules"]["folder_refused"], said["broker"]["reachable"])
    for path in ("/metrics", "/status"):
        assert 404 == httpx.get(f"http://127.0.0.1:{door.server.port}{path}", trust_env=False).status_code


def test_the_token_of_the_settings_counts(settings, open_door) -> None:
    """A token that was set is the only one, and none is made."""
    door = open_door(LEADWIRE_OPERATOR_TOKEN="fake-token")

    assert 200 == _asked(door, "/status", "fake-token").status_code
    assert not (settings.home / "operator-token").exists()


def test_a_taken_operator_port_is_named(open_door) -> None:
    """A second ingress on one machine is told which setting to change."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"LEADWIRE_OPERATOR_PORT: cannot listen on port {port} of 127.0.0.1"):
            open_door(LEADWIRE_OPERATOR_PORT=str(port))


def test_without_a_place_for_the_token_it_must_be_set(settings, open_door, tmp_path) -> None:
    """A data folder that cannot be written is no reason to go without a token."""
    (tmp_path / "file").write_text("")
    database = settings.database_url
    with pytest.raises(SettingsError, match="LEADWIRE_OPERATOR_TOKEN is not set"):
        open_door(LEADWIRE_HOME=str(tmp_path / "file" / "home"), LEADWIRE_DATABASE_URL=database)


def test_refused_rules_are_told(settings, open_door) -> None:
    """An ingress that works with the last good set says so."""
    open_door()
    (settings.rules / "a.yaml").write_text("wrong: 1\n")
    door = open_door(LEADWIRE_OPERATOR_TOKEN="fake-token")

    assert _asked(door, "/status", "fake-token").json()["rules"]["folder_refused"]
    assert "leadwire_rules_refused 1.0" in _asked(door, "/metrics", "fake-token").text


def test_requests_are_in_the_ledger_when_the_door_is_closed(settings, open_door, now) -> None:
    """What was answered is counted in the ledger at the latest when the process ends."""
    door = open_door(LEADWIRE_OPERATOR_TOKEN="fake-token")
    url = f"http://127.0.0.1:{door.server.port}/webhooks/crm"
    for _ in range(3):
        assert 401 == httpx.post(url, json={}, headers={"X-Webhook-Secret": "wrong"}, trust_env=False).status_code
    door.requests.close()

    with closing(open_ledger(settings.database_url)) as ledger:
        tallies = ledger.queries.measure(now).tallies
    assert {("crm", "rejected", "mismatch"): 3} == tallies[CounterName.REQUESTS]
