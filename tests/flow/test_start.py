"""What a start refuses, and with which words."""

import socket
import uuid

import pytest


def test_everything_missing_is_named_at_once(own_line):
    """Without credentials and rules the start ends with one message that names them all."""
    for name in ("RULES", "MINDHUNTERS_URL", "MINDHUNTERS_TOKEN", "VAMBE_API_KEY"):
        own_line.settings[f"LEADWIRE_{name}"] = ""
    done = own_line.cli("up")
    assert 1 == done.returncode
    for name in ("RULES", "MINDHUNTERS_URL", "MINDHUNTERS_TOKEN", "VAMBE_API_KEY"):
        assert f"LEADWIRE_{name}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["LEADWIRE_PORT", "LEADWIRE_OPERATOR_PORT", "LEADWIRE_FLOWER_PORT"])
def test_a_taken_port_is_told_with_its_setting(own_line, name):
    """A port that somebody else holds ends the start with the setting to change."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        own_line.settings[name] = str(holder.getsockname()[1])
        done = own_line.cli("up")
    assert 1 == done.returncode
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_faulty_rules_end_a_first_start(own_line):
    """With no earlier rule set to fall back to, the faults are printed with their places and nothing runs."""
    (own_line.rules / "rules.yaml").write_text("rules:\n  - {id: a, wenn: lead.created}\n")
    done = own_line.cli("up")
    assert 1 == done.returncode
    assert "rules.yaml:2:" in done.stderr
    assert not (own_line.home / "up.json").exists()


def test_faulty_rules_leave_the_last_good_set_in_force(own_line):
    """A start with a broken rules folder goes on with the set that was accepted last, sources included."""
    own_line.start()
    own_line.stop()
    (own_line.rules / "rules.yaml").write_text("rules:\n  - {id: a, wenn: lead.created}\n")
    own_line.start()
    name = uuid.uuid4().hex
    assert own_line.post(own_line.event("deal.created", name=name)).is_success
    assert own_line.until(lambda: [f"Person {name}"] == [task["title"] for task in own_line.sandbox.tasks("vambe")])
