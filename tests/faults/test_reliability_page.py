"""docs/reliability.md says what is there: its tests exist, its invariants are the checker's, its command takes its options."""

import re
from pathlib import Path

from tests.faults.chaos.__main__ import arguments
from tests.faults.chaos.invariants import INVARIANTS
from tests.faults.chaos.schedule import Kind

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_named_is_there():
    """Each of the twenty experiments names tests, and no path names nothing."""
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    assert [str(number) for number in range(1, 21)] == [number for number, _ in rows]
    assert all("`tests/" in tests for _, tests in rows)
    assert [] == [path for path in re.findall(r"`(tests/[\w/.]+)`", PAGE) if not (ROOT / path).exists()]


def test_the_invariants_are_those_of_the_checker():
    """The page's nine sentences are the checker's."""
    assert [(one.name, one.sentence) for one in INVARIANTS] == re.findall(r"^\| (I\d) \| (.*) \|$", PAGE, re.MULTILINE)


def test_the_commands_are_understood():
    """Every option the page shows is one of the command's."""
    for words in (["--seed", "1", "--seconds", "600", "--plain-celery"], ["--look-up", "broken"], ["--rate", "50"]):
        assert arguments(words)
    assert [Kind.KILL_BROKER, Kind.EMPTY_BROKER] == arguments(["--faults", "broker killed,broker emptied"]).faults
    shown = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))
    assert shown <= {f"--{name.replace('_', '-')}" for name in vars(arguments([]))}
