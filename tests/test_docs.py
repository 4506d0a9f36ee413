"""README and docs say only what is so: commands, settings, paths, links and the rule shown are compared with the code."""

from __future__ import annotations

import io
import re
from datetime import datetime
from pathlib import Path

import pytest

from console.cli import COMMANDS, main
from console.reference import PAGES
from ingress import sources
from rules.loader import load
from rules.rule_tests import run_rule_tests
from worker.settings import PREFIX, VARIABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: What people read, the history of changes apart.
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Variables of the container files, which begin like settings and which the program does not read.
NO_SETTINGS = frozenset({"LEADWIRE_PUBLISH", "LEADWIRE_REVISION"})


def _called(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", PAGES)
def test_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    """The pages of settings, commands and the sandbox are what the code would write now: `make docs` writes them."""
    assert PAGES[name]() == (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*PROSE, ROOT / "Makefile"], ids=_called)
def test_every_command_named_anywhere_exists(page: Path) -> None:
    """No sentence names a command that does not exist."""
    named = set(re.findall(r"(?:`|bin/)leadwire ([a-z]+)", page.read_text(encoding="utf-8")))

    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", PROSE, ids=_called)
def test_every_setting_named_anywhere_exists(page: Path) -> None:
    """No sentence names a variable of Leadwire that it does not read."""
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b(?!\*|_)", page.read_text(encoding="utf-8")))

    assert named <= {PREFIX + each.name for each in VARIABLES} | NO_SETTINGS


@pytest.mark.parametrize("page", PROSE, ids=_called)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Every link to a file of the checkout finds it."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))

    assert [] == [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PROSE, ids=_called)
def test_every_make_target_named_exists(page: Path) -> None:
    """No sentence names a make target that does not exist."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {"install", "demo", "up", "test", "check"} <= targets
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= targets


@pytest.mark.parametrize("page", PROSE, ids=_called)
def test_every_path_named_exists(page: Path) -> None:
    """Every file and folder of the checkout that is named is there."""
    named = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    ours = {
        text
        for text in named
        if re.fullmatch(r"(rules|worker|ingress|console|tests|bench|docs|deploy|\.ci)/[\w./-]*", text)
    }

    assert [] == sorted(path for path in ours if not (ROOT / path).exists())


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
