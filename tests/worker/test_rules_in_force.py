"""Which rule set is in force."""

from datetime import UTC, datetime

import pytest

from rules.vocabulary import RuleError, SettingsError
from worker.ledger import migrate, open_ledger
from worker.rules_in_force import read_files, rules_in_force

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
GOOD = "rules: [{id: a, when: lead.created, then: [{team_task: {title: Hi, priority: low, assign: [someone]}}]}]\n"
RULES = frozenset({"rules"})


@pytest.fixture
def ledger(tmp_path):
    """Give an empty ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    yield ledger
    ledger.close()


@pytest.fixture
def folder(tmp_path):
    """Give a rules folder with one good file."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "a.yaml").write_text(GOOD)
    return folder


def test_a_good_folder_is_kept_in_the_ledger(ledger, folder):
    """An accepted set is stored under the version that its decisions carry."""
    book = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    assert (book.version, {"a.yaml": GOOD}) == ledger.latest_rule_set()


def test_a_faulty_folder_falls_back_to_the_last_good_set(ledger, folder):
    """What was accepted last decides while the folder is faulty."""
    good = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    (folder / "a.yaml").write_text("rules: [{id: a, wenn: lead.created}]\n")
    assert good.version == rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW).version


def test_a_faulty_folder_without_an_earlier_set_is_refused(ledger, folder):
    """With nothing to fall back to, every fault is told."""
    (folder / "a.yaml").write_text("rules: [{id: a, wenn: lead.created}]\n")
    with pytest.raises(RuleError, match=r"a\.yaml:1:\d+: .*wenn"):
        rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)


def test_a_missing_folder_says_what_to_set(ledger, folder):
    """No rules folder, or none that exists, leads to the setting."""
    for place in (None, folder / "nowhere"):
        with pytest.raises(SettingsError, match="LEADWIRE_RULES"):
            rules_in_force(place, ledger, {}, resolve=RULES, now=NOW)


def test_files_come_by_name_without_hidden_ones_and_folders(folder):
    """Rule files are read in the order of their names; hidden files, other suffixes and folders are none."""
    for name in ("b.yml", ".hidden.yaml", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "folder.yaml").mkdir()
    assert ["a.yaml", "b.yml"] == list(read_files(folder))
    assert ["r/a.yaml", "r/b.yml"] == list(read_files(folder, shown_as="r/"))
