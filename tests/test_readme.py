"""The README says only what is so: its commands, paths, settings and the rule it shows are compared with the code."""

from __future__ import annotations

import io
import re
from datetime import datetime
from pathlib import Path

import click
import pytest

from console.cli import COMMANDS, leadwire, main
from ingress import sources
from rules.loader import load
from rules.rule_tests import run_rule_tests
from worker.settings import PREFIX, VARIABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Words of the README that look like paths and are the reader's own, or made at run time.
NOT_IN_THE_CHECKOUT = frozenset({".venv/bin/leadwire", ".leadwire", ".env", "ledger.sqlite3"})


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading or line."""
    after = README.split(heading, 1)[1]
    table = re.search(r"^\|.*\n\| -.*\n((?:\|.*\n)+)", after, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in table[1].splitlines()]


def _code() -> list[str]:
    return re.findall(r"`([^`\n]+)`", README)


def test_settings_are_those_of_the_code() -> None:
    """The settings table lists every variable with its default and meaning, in order, and nothing else."""
    expected = [
        [f"`{PREFIX}{one.name}`", f"`{one.default}`" if one.default else "none", one.meaning] for one in VARIABLES
    ]

    assert expected == _rows("## Settings")


def test_commands_are_those_of_the_program() -> None:
    """The command table lists every command with the first sentence of its help, in order, and nothing else."""
    context = click.Context(leadwire)
    expected = []
    for name in COMMANDS:
        command = leadwire.get_command(context, name)
        assert command is not None
        assert command.help
        expected.append([f"`leadwire {name}`", command.help.split("\n\n")[0].replace("\n", " ")])

    assert expected == _rows("leadwire explain --last")


def test_every_command_named_anywhere_exists() -> None:
    """No sentence names a command that does not exist."""
    shown = (
        README + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8") + (ROOT / "Makefile").read_text(encoding="utf-8")
    )
    named = set(re.findall(r"(?:`|bin/)leadwire ([a-z]+)", shown))

    assert named <= set(COMMANDS)


def test_every_make_target_named_exists() -> None:
    """No sentence names a make target that does not exist."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {"install", "demo", "up", "test", "check"} <= targets
    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", README)) <= targets


def test_every_path_named_exists() -> None:
    """Every path of the checkout that the README names is there."""
    paths = {text for text in _code() if re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*/?", text) and ("/" in text or "." in text)}
    own = {
        text
        for text in paths - NOT_IN_THE_CHECKOUT
        if text.split("/")[0] in {"rules", "worker", "ingress", "tests", ".ci"} or text == "pyproject.toml"
    }

    assert own
    assert [] == sorted(path for path in own if not (ROOT / path).exists())


def test_the_rule_shown_is_accepted(now: datetime) -> None:
    """The rule file of the README is accepted as it stands, its source can be built and its tests pass."""
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown
    environment = {"SALES_AGENT": "11111111-1111-4111-8111-111111111111", "CRM_SECRET": "fake-secret-for-tests"}

    rule_set = load({"README.yaml": shown[1]}, environment)
    _, faults = sources.build(rule_set.sources, environment, public_url=None)

    assert [] == list(rule_set.warnings)
    assert [] == list(faults)
    assert [] == run_rule_tests(rule_set, now=now)


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md"])
def test_linked_files_exist(name: str) -> None:
    """What the README links to is there."""
    assert f"({name})" in README
    assert (ROOT / name).is_file()


def test_the_outputs_shown_are_real(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README shows of `check` and `explain` is what they print, to the letter."""
    monkeypatch.chdir(ROOT)
    shown = re.search(
        r"export (\w+)=(\S+)\n\$ \S+leadwire (check [^\n]*)\n(.*?)\$ echo '([^']*)' \\\n *\| \S+leadwire ([^\n]*)\n(.*?)```",
        README,
        re.DOTALL,
    )
    assert shown
    name, value, check, checked, event, explain, explained = shown.groups()
    monkeypatch.setenv(name, value)

    for command, expected in ((check, checked), (explain, explained)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(event.encode())))
        with pytest.raises(SystemExit):
            main(command.split())
        assert expected == capsys.readouterr().out
