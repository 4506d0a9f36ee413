"""The commands about providers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest


def listed(run):
    """Return what `providers --json` says, by name."""
    return {one["provider"]: one for one in json.loads(run("providers", "--json").out)}


def test_a_provider_is_paused_until_it_is_resumed(run, filled):
    """Its reason and its tasks are shown; the other provider goes on."""
    said = run("pause", "vambe", "--reason", "they migrate today")
    shown = run("providers")
    one = listed(run)

    assert "vambe is paused until it is resumed; 3 tasks ahead of it\n" == said.out
    assert "until resumed" in shown.out
    assert "they migrate today" in shown.out
    assert (True, "person", None) == tuple(one["vambe"][key] for key in ("paused", "kind", "until"))
    assert 3 == sum(one["vambe"]["tasks"].values())
    assert one["mindhunters"]["paused"] is False
    assert "vambe is resumed; 3 tasks ahead of it\n" == run("resume", "vambe").out
    assert listed(run)["vambe"]["paused"] is False
    assert "was not paused" in run("resume", "vambe").out


@pytest.mark.parametrize("bound", [("--for", "2h"), ("--until", "2999-01-01T12:00:00Z")])
def test_a_pause_may_have_an_end(run, filled, bound):
    """It is shown in UTC."""
    assert 0 == run("pause", "vambe", *bound).code
    assert listed(run)["vambe"]["until"].endswith("Z")


def test_a_pause_that_has_ended_is_none(run, filled, now):
    """A person's pause ends at its moment, also when nobody has claimed since."""
    filled.limits.pause("vambe", now + timedelta(seconds=1), "short", now)
    assert listed(run)["vambe"]["paused"] is False


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("vambe", "--for", "2h", "--until", "2999-01-01"), 2),
        (("vambe", "--until", "2h"), 2),
        (("vambe", "--for", "soon"), 2),
        (("vambe", "--until", "2020-01-01"), 1),
        (("nobody",), 2),
    ],
)
def test_a_pause_needs_one_moment_to_come(run, filled, arguments, code):
    """Everything else is a wrong use, or a fault that says what to do."""
    assert code == run("pause", *arguments).code
    assert listed(run)["vambe"]["paused"] is False
