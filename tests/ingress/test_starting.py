"""What is checked before anything starts."""

from __future__ import annotations

import pytest

from ingress.starting import check_start
from rules.vocabulary import RuleError
from worker.ledger import migrate, open_ledger
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
    ledger.store_rule_set("rs_1", {"a.yaml": GOOD}, now)
    ledger.close()
    (settings.rules / "a.yaml").unlink()
    settings.rules.rmdir()

    assert not check_start(settings)
    assert "stays in force" in caplog.text
