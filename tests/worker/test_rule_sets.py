"""Which rule set is in force."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rules.vocabulary import RuleError, RuleFault, SettingsError
from worker.ledger import migrate, open_ledger
from worker.rule_sets import (
    REMEMBERED_SETS,
    KeptRuleSets,
    read_files,
    rules_in_force,
    together,
    unread_folders,
)

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
    rule_set = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    assert (rule_set.version, {"a.yaml": GOOD}) == ledger.rule_sets.latest()


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


def test_files_come_by_name_without_hidden_ones(folder):
    """Rule files are read in the order of their names, whatever the case of their suffix; other ones are none."""
    for name in ("b.yml", "c.YAML", ".hidden.yaml", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "sub").mkdir()
    assert ["a.yaml", "b.yml", "c.YAML"] == list(read_files(folder))
    assert ["r/a.yaml", "r/b.yml", "r/c.YAML"] == list(read_files(folder, shown_as="r/"))


def test_what_is_no_file_is_a_fault_and_is_never_opened(folder):
    """A pipe, a broken link, a circle of links and a folder are faults of their own; the rest is read beside them."""
    os.mkfifo(folder / "p.yaml")
    (folder / "dangling.yaml").symlink_to("nowhere")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "x.yaml").mkdir()
    found = read_files(folder, shown_as="r")
    assert {
        "r/a.yaml": GOOD,
        "r/dangling.yaml": "r/dangling.yaml:1:1: cannot be read: No such file or directory (it is a link to nowhere)",
        "r/loop.yaml": "r/loop.yaml:1:1: cannot be read: Too many levels of symbolic links (it is a link to loop.yaml)",
        "r/p.yaml": "r/p.yaml:1:1: is a pipe: rules stand in files; move it or give it another name",
        "r/x.yaml": "r/x.yaml:1:1: is a folder: rules stand in files; move it or give it another name",
    } == {name: str(text) for name, text in found.items()}


@pytest.mark.parametrize("place", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_rule_file(place):
    """A device is refused by its name and not read from."""
    assert [f"{place}:1:1: is a device: rules stand in files; move it or give it another name"] == [
        str(fault) for fault in read_files(Path(place)).values()
    ]


def test_a_folder_that_cannot_be_read_leaves_the_last_good_set_in_force(ledger, folder):
    """Whatever stands where the folder stood, what was accepted last decides."""
    good = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    for place in (Path("/dev/null"), folder / "a.yaml" / "below", folder / "nowhere"):
        assert good.version == rules_in_force(place, ledger, {}, resolve=RULES, now=NOW).version


def test_faults_of_the_sources_are_told_beside_those_of_the_rules(ledger, folder):
    """What the front door says of the sources comes in one run with the rest, in the order of the files."""
    (folder / "a.yaml").write_text("sources: {crm: {}}\nnonsense: 1\n")
    (folder / "b.yaml").write_text("sources: {shop: {}}\nwrong: 1\n")

    def faults_of(texts):
        for text in texts:
            text.places.add_fault(text.path, f"{text.name} is bad")
        return [fault for text in reversed(texts) for fault in text.places.faults if "is bad" in fault.message]

    with pytest.raises(RuleError) as told:
        rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW, faults_of=faults_of)
    assert [("a.yaml", 1), ("a.yaml", 2), ("b.yaml", 1), ("b.yaml", 2)] == [
        (fault.file, fault.line) for fault in told.value.faults
    ]


def test_faulty_sources_alone_keep_a_set_out_of_force(ledger, folder):
    """A set whose sources the front door cannot build is not kept; the last good one stays."""
    good = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    (folder / "b.yaml").write_text("sources: {crm: {}}\n")
    fault = RuleFault(file="b.yaml", line=1, column=1, path="sources.crm", message="has no auth")
    rule_set = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW, faults_of=lambda _: [fault])
    assert good.version == rule_set.version == ledger.rule_sets.latest()[0]


def test_of_two_faults_at_one_place_the_first_is_told():
    """What the grammar has refused is not refused again by the front door."""
    first = RuleFault(file="a.yaml", line=1, column=1, path="sources.crm", message="must be a mapping")
    files = {"a.yaml": ""}
    assert (first,) == together([first], [replace(first, message="again")], files)


def test_sub_folders_with_rule_files_are_a_warning(folder):
    """Only the folder itself is read; who keeps rule files below it is told."""
    for name in ("deep", "deep/er", ".git", "notes"):
        (folder / name).mkdir()
    (folder / "deep" / "er" / "b.yaml").write_text("{}")
    (folder / ".git" / "c.yaml").write_text("{}")
    (folder / "notes" / "readme.txt").write_text("")
    (warning,) = unread_folders(folder, shown_as="r")
    assert ("r/deep", True) == (warning.file, "not read" in warning.message)
    assert [] == unread_folders(folder / "a.yaml")


def test_an_earlier_set_is_read_from_the_ledger(ledger, folder):
    """What planned a task counts for what follows on it, also when the folder has changed since."""
    earlier = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    (folder / "a.yaml").write_text(GOOD.replace("id: a", "id: b"))
    current = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    sets = KeptRuleSets(ledger, current, {}, RULES)

    assert current is sets.rule_set(current.version)
    assert ["a"] == [rule.id for rule in sets.rule_set(earlier.version).rules]
    assert sets.rule_set(earlier.version) is sets.rule_set(earlier.version)


def test_a_set_that_is_gone_says_so(ledger, folder):
    """A version that nobody stored is named."""
    sets = KeptRuleSets(ledger, rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW), {}, RULES)
    with pytest.raises(SettingsError, match="rule set rs_gone is not in the ledger any more"):
        sets.rule_set("rs_gone")


def test_only_some_sets_are_remembered(ledger, folder):
    """However many sets there were, a process keeps a few compiled, the one in force always."""
    current = rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW)
    sets = KeptRuleSets(ledger, current, {}, RULES)
    for number in range(20):
        (folder / "a.yaml").write_text(GOOD.replace("id: a", f"id: b{number}"))
        sets.rule_set(rules_in_force(folder, ledger, {}, resolve=RULES, now=NOW).version)

    assert current is sets.rule_set(current.version)
    assert REMEMBERED_SETS + 1 == len(sets._books)
