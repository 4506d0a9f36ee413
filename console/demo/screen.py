"""What the demo shows: one line that moves while tasks arrive (lines, where nothing can move), and a table at the end."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

import click

from console.demo.outcome import Outcome
from console.demo.story import Happening, Posting
from console.samples import Posted
from rules.conditions import explain
from rules.vocabulary import Decision, DecisionOutcome, Json
from worker.ledger import StoredEvent

#: Widths of the table's columns: 100 with the gaps between them; a provider's id has 36 characters.
COLUMNS: Final = (28, 32, 36)
BAR: Final = 24


class Screen:
    """Writes to standard output; nothing else of the demo does."""

    def __init__(self) -> None:
        self._moves = sys.stdout.isatty()
        self._began = time.monotonic()
        self._shown: set[str] = set()

    def opening(self, folder: Path, rules: Path) -> None:
        """Say what this is."""
        click.secho("Leadwire demo: signed webhooks become calls, WhatsApp templates and team tasks", bold=True)
        click.echo(f"  rules       {_near(rules)}")
        click.echo(f"  everything  {folder}")
        self.starting()

    def starting(self) -> None:
        """Say that everything starts; where a line can move, with the time it has taken."""
        if self._moves:
            self._wipe()
            click.echo(f"Starting broker, worker, webhook server and Flower ... {self._seconds()}", nl=False)
        elif not self._shown:
            click.echo("Starting broker, worker, webhook server and Flower ...")
            self._shown.add("starting")

    def running(self, url: str, sandbox_url: str) -> None:
        """Say where things are."""
        self._wipe()
        click.echo(f"  webhooks    {url}/webhooks/SOURCE   ready after {self._seconds()}")
        click.echo(f"  providers   {sandbox_url}   (a sandbox that answers like Mindhunters and Vambe)")

    def posting(self) -> None:
        """Open the list of postings."""
        click.secho("\nPosting signed webhooks", bold=True)

    def posted(self, posting: Posting, answers: Sequence[Posted]) -> None:
        """Show one webhook and the answers it got."""
        statuses = " ".join(str(posted.status) for posted in answers)
        what = "; ".join(happening.words for happening in posting.happenings)
        again = "  (posted twice)" if posting.again else ""
        click.echo(f"  {statuses:<9}{posting.source:<9} {posting.form:<26} {what}{again}")

    def arrived(self, outcome: Outcome) -> None:
        """Show the tasks that came to the providers since the last look, and how many are to come."""
        if "tasks" not in self._shown:
            self._shown.add("tasks")
            click.secho("\nTasks arriving at the providers", bold=True)
        self._wipe()
        for one in outcome.held:
            if (identifier := _identifier(one)) not in self._shown:
                self._shown.add(identifier)
                click.echo(f"  {self._seconds():>7}  {one['title']}")
        if self._moves:
            there, all_of_them = len(outcome.held), len(outcome.promised)
            done = BAR * min(there, all_of_them) // max(all_of_them, 1)
            bar = "█" * done + "░" * (BAR - done)
            click.echo(f"  {self._seconds():>7}  {bar}  {there} of {all_of_them}", nl=False)

    def arrivals_end(self) -> None:
        """Take the moving line away."""
        self._wipe()

    def table(self, outcome: Outcome) -> None:
        """Show what came in, what was decided and why, and what was created."""
        click.echo()
        for line in _joined(("What came in", "What was decided, and why", "What was created")):
            click.secho(line, bold=True)
        for posting, answers in zip(outcome.postings, outcome.answers, strict=True):
            for happening in posting.happenings:
                click.echo(_rule())
                for line in _rows(outcome, posting, happening):
                    click.echo(line)
            for repeated in answers[1:]:
                click.echo(_rule())
                came = "the same bytes again"
                for line in _joined(
                    (
                        came,
                        f"a redelivery, answered with {repeated.status}: known already, nothing new",
                        "nothing",
                    )
                ):
                    click.echo(line)
        click.echo(_rule())

    def well(self, outcome: Outcome) -> None:
        """Say that all is as expected."""
        alone = sum(
            happening.left_alone is not None for posting in outcome.postings for happening in posting.happenings
        )
        click.secho(
            f"All as expected: {len(outcome.promised)} promised tasks are at their providers, each exactly once; "
            f"the redelivery\ncreated nothing; {alone} events that were left alone are explained. "
            f"It took {self._seconds()}.",
            fg="green",
        )

    def stopping(self) -> None:
        """Say that everything is being stopped."""
        self._wipe()
        click.echo("Stopping everything ...")

    def kept(self, folder: Path) -> None:
        """Say where everything is, and how to look into it."""
        click.echo(f"Kept: {folder}. Look into it: LEADWIRE_HOME={folder / 'home'} leadwire tasks")

    def _wipe(self) -> None:
        if self._moves:
            click.echo("\r\033[K", nl=False)

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"


def _rows(outcome: Outcome, posting: Posting, happening: Happening) -> Iterator[str]:
    event = outcome.event_of(posting, happening)
    came = f"{happening.type}, {posting.source}\n{happening.words}"
    if event is None or not event.decisions:
        state = f"{event.state}" if event else "not in the ledger"
        yield from _joined((came, f"{state}: {event.reason if event else 'see below'}", "nothing"))
        return
    for decision in event.decisions:
        yield from _joined((came, _why(decision), "\n".join(_created(outcome, event, decision)) or "nothing"))
        came = ""


def _why(decision: Decision) -> str:
    if decision.outcome is DecisionOutcome.MATCHED:
        return f"{decision.rule}: matched"
    return f"{decision.rule}: left alone\n{explain(decision.failed) if decision.failed else decision.reason}"


def _created(outcome: Outcome, event: StoredEvent, decision: Decision) -> Iterator[str]:
    for task in outcome.tasks_of(event, decision.rule):
        yield f"{task.type} at {task.provider}"
        yield task.external_id or f"{task.state}: {task.reason or 'on its way'}"


def _joined(cells: tuple[str, str, str]) -> Iterator[str]:
    """Yield the lines of a row: each cell wrapped to its column, side by side."""
    wrapped = [
        [part for line in cell.split("\n") for part in textwrap.wrap(line, width, subsequent_indent="  ")]
        for cell, width in zip(cells, COLUMNS, strict=True)
    ]
    for parts in zip_longest(*wrapped, fillvalue=""):
        yield "  ".join(part.ljust(width) for part, width in zip(parts, COLUMNS, strict=True)).rstrip()


def _rule() -> str:
    return "  ".join("-" * width for width in COLUMNS)


def _identifier(task: Mapping[str, Json]) -> str:
    return str(task.get("uuid") or task.get("id"))


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
