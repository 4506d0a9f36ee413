"""`leadwire demo`: the whole line on this machine, from signed webhooks to tasks at sandbox providers, and what came of it.

Everything lives in a fresh temporary folder and on free ports; nothing is left running. It ends well only if every expected
task is at its provider exactly once, the redelivery created nothing, and the leads that were left alone are explained.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Final

import click

from console import local_broker
from console.demo.scenario import DemoResult, DemoWebhook, ExpectedEvent, rule_variables, webhooks
from console.samples import Posted, post, sign
from console.supervisor import free_port
from ingress import sources
from ingress.processes import dies_with_me
from ingress.sources import Source
from rules.conditions import explain
from rules.loader import load
from rules.vocabulary import Decision, DecisionOutcome, Problem
from worker.clock import utc_now
from worker.ledger import StoredEvent, open_ledger
from worker.rule_sets import INGRESS_SECTIONS, read_files
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox
from worker.settings import PREFIX

#: The whole demo takes no longer than this before it gives up waiting.
LIMIT_SECONDS: Final = 90.0
START_POLL_SECONDS: Final = 0.05
RESULT_POLL_SECONDS: Final = 0.1
#: `up` ends its children in order within 30 seconds.
STOP_SECONDS: Final = 35.0
#: Lines of each log that a failure shows.
LOG_LINES: Final = 12
#: Widths of the table's columns: 100 with the gaps between them; a provider's id has 36 characters.
COLUMN_WIDTHS: Final = (28, 32, 36)
BAR_WIDTH: Final = 24


def run(*, keep: bool) -> None:
    """Run the demo. Raises Problem, saying where the logs are, when anything is not as expected."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began_at = time.monotonic()
    line = ProgressLine()
    with _temporary_folder(keep=keep) as folder, Sandbox() as sandbox:
        leadwire = LeadwireProcess(folder=folder, sandbox=sandbox, variables=rule_variables())
        here = leadwire.rules.is_relative_to(Path.cwd())
        click.secho("Leadwire demo: signed webhooks become calls, WhatsApp templates and team tasks", bold=True)
        click.echo(f"  rules       {leadwire.rules.relative_to(Path.cwd()) if here else leadwire.rules}")
        click.echo(f"  everything  {folder}")
        try:
            leadwire.start(began_at + LIMIT_SECONDS, line)
            click.echo(f"  webhooks    {leadwire.url}/webhooks/SOURCE   ready after {line.seconds()}")
            click.echo(f"  providers   {sandbox.url}   (a sandbox that answers like Mindhunters and Vambe)")
            posted = webhooks()
            answers = _post_all(posted, leadwire)
            result = _wait_for_result(posted, answers, leadwire, sandbox, line, began_at + LIMIT_SECONDS)
            _print_result(result)
            if wrong := list(result.shortcomings()):
                raise Problem("\n".join(["NOT as expected:", *(f"  {one}" for one in wrong)]))
            left_alone = sum(event.failing_test is not None for event in result.expected_events)
            click.secho(
                f"All as expected: {len(result.expected_tasks)} promised tasks are at their providers, each exactly once; "
                f"the redelivery\ncreated nothing; {left_alone} events that were left alone are explained. "
                f"It took {line.seconds()}.",
                fg="green",
            )
        except Problem as problem:
            raise Problem(f"{problem}\n\n{leadwire.log_tails()}") from problem
        finally:
            line.clear()
            click.echo("Stopping everything ...")
            leadwire.stop()


@contextmanager
def _temporary_folder(*, keep: bool) -> Iterator[Path]:
    """Make a fresh folder; it goes when all went well, and stays, with its place said, when not."""
    folder = Path(tempfile.mkdtemp(prefix="leadwire-demo-"))
    try:
        yield folder
    except Problem as problem:
        raise Problem(f"{problem}\n\nLedger and logs are kept in {folder}") from problem
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if keep:
        click.echo(f"Kept: {folder}. Look into it: LEADWIRE_HOME={folder / 'home'} leadwire tasks")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _post_all(posted: Sequence[DemoWebhook], leadwire: LeadwireProcess) -> tuple[tuple[Posted, ...], ...]:
    """Post each webhook, those that are redelivered twice with the same bytes; return the answers to each."""
    built = leadwire.build_sources()
    click.secho("\nPosting signed webhooks", bold=True)
    answers = []
    for webhook in posted:
        now = utc_now()
        request = sign(built[webhook.source], webhook.sample(now), leadwire.url, now)
        answers.append(tuple(post(request) for _ in range(2 if webhook.redelivered else 1)))
        statuses = " ".join(str(answer.status) for answer in answers[-1])
        labels = "; ".join(event.label for event in webhook.events)
        twice = "  (posted twice)" if webhook.redelivered else ""
        click.echo(f"  {statuses:<9}{webhook.source:<9} {webhook.format:<26} {labels}{twice}")
    return tuple(answers)


def _wait_for_result(
    posted: tuple[DemoWebhook, ...],
    answers: tuple[tuple[Posted, ...], ...],
    leadwire: LeadwireProcess,
    sandbox: Sandbox,
    line: ProgressLine,
    give_up_at: float,
) -> DemoResult:
    """Show the tasks as they arrive until all is decided and delivered, or time is up."""
    click.secho("\nTasks arriving at the providers", bold=True)
    shown: set[str] = set()
    ledger = open_ledger(leadwire.ledger_url)
    try:
        while True:
            result = DemoResult(
                webhooks=posted,
                answers=answers,
                events=tuple(ledger.queries.list_events()),
                tasks=tuple(ledger.queries.list_tasks()),
                at_mindhunters=tuple(sandbox.tasks("mindhunters")),
                at_vambe=tuple(sandbox.tasks("vambe")),
                refused=tuple(str(one["why"]) for one in sandbox.state()["refused"]),
            )
            line.clear()
            for one in result.at_providers:
                identifier = str(one.get("uuid") or one.get("id"))
                if identifier not in shown:
                    shown.add(identifier)
                    click.echo(f"  {line.seconds():>7}  {one['title']}")
            line.show_bar(len(result.at_providers), len(result.expected_tasks))
            if result.is_final or time.monotonic() > give_up_at:
                return result
            leadwire.check_alive()
            time.sleep(RESULT_POLL_SECONDS)
    finally:
        line.clear()
        ledger.close()


class ProgressLine:
    """A status line on the terminal that is overwritten; elsewhere nothing that changes is printed."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._began_at = time.monotonic()

    def show_starting(self, *, first: bool) -> None:
        """Print that everything is starting, on a terminal with the elapsed time."""
        text = "Starting broker, worker, webhook server and Flower ..."
        if self._is_terminal:
            self.clear()
            click.echo(f"{text} {self.seconds()}", nl=False)
        elif first:
            click.echo(text)

    def show_bar(self, done: int, wanted: int) -> None:
        """Print how many are done."""
        if self._is_terminal:
            filled = BAR_WIDTH * min(done, wanted) // max(wanted, 1)
            bar = "█" * filled + "░" * (BAR_WIDTH - filled)
            click.echo(f"  {self.seconds():>7}  {bar}  {done} of {wanted}", nl=False)

    def clear(self) -> None:
        """Erase the line."""
        if self._is_terminal:
            click.echo("\r\033[K", nl=False)

    def seconds(self) -> str:
        """Return how long the demo has run, in words."""
        return f"{time.monotonic() - self._began_at:.1f} s"


@dataclass(slots=True, kw_only=True)
class LeadwireProcess:
    """The demo's own `leadwire up`: a child process with its own folder, ports and credentials, which ends with the demo."""

    folder: Path
    sandbox: Sandbox
    variables: Mapping[str, str]
    url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def rules(self) -> Path:
        """The example rules of this installation."""
        return Path(str(files("rules").joinpath("examples")))

    @property
    def home(self) -> Path:
        """The data folder."""
        return self.folder / "home"

    @property
    def ledger_url(self) -> str:
        """The ledger's URL."""
        return f"sqlite:///{self.home / 'ledger.sqlite3'}"

    def build_sources(self) -> Mapping[str, Source]:
        """Return the sources of the example rules, by name."""
        rule_set = load(read_files(self.rules), self.variables, resolve=INGRESS_SECTIONS)
        built, faults = sources.build(rule_set.sources, self.variables, public_url=self.url)
        if faults:
            raise Problem("\n".join(str(fault) for fault in faults))
        return built

    def start(self, give_up_at: float, line: ProgressLine) -> None:
        """Start `leadwire up` and wait until it is ready. Raises Problem when it ends or time is up."""
        port = free_port()
        line.show_starting(first=True)
        self.home.mkdir(mode=0o700)
        # -P: the folder we stand in is no place to import from.
        command = [sys.executable, "-P", "-m", "console.cli", "up"]
        with (self.folder / "up.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                dies_with_me(command),
                cwd=self.folder,
                env=self._environment(port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which stops `up` in order
            )
        while not (self.home / "up.json").exists():
            self.check_alive()
            if time.monotonic() > give_up_at:
                raise Problem("`leadwire up` is not ready in time")
            line.show_starting(first=False)
            time.sleep(START_POLL_SECONDS)
        line.clear()
        self.url = str(json.loads((self.home / "up.json").read_bytes())["url"])

    def check_alive(self) -> None:
        """Raise Problem when `leadwire up` has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise Problem(f"`leadwire up` ended with {self._process.returncode}")

    def stop(self) -> None:
        """Stop `leadwire up` and all it started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        socket_folder = local_broker.socket_path(self.home).parent
        if not socket_folder.is_relative_to(self.home):  # where the data folder's path is too long for a socket
            shutil.rmtree(socket_folder, ignore_errors=True)

    def log_tails(self) -> str:
        """Return the last lines of every log."""
        parts = []
        for path in (self.folder / "up.log", *sorted((self.home / "logs").glob("*.log"))):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if lines:
                parts.append("\n".join([f"--- {path.relative_to(self.folder)}", *lines[-LOG_LINES:]]))
        return "\n".join(parts) or "(no log lines)"

    def _environment(self, port: int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        own = {
            "HOME": str(self.home),
            "RULES": str(self.rules),
            "PORT": str(port),
            "OPERATOR_PORT": "0",
            "FLOWER_PORT": "0",
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "MINDHUNTERS_URL": self.sandbox.mindhunters_url,
            "MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN,
            "VAMBE_URL": self.sandbox.vambe_url,
            "VAMBE_API_KEY": VAMBE_API_KEY,
        }
        return {**inherited, **self.variables, **{PREFIX + name: value for name, value in own.items()}}


def _print_result(result: DemoResult) -> None:
    """Print a table of what came in, what was decided and why, and what was created."""
    ruler = "  ".join("-" * width for width in COLUMN_WIDTHS)
    click.echo()
    for line in _row_lines("What came in", "What was decided, and why", "What was created"):
        click.secho(line, bold=True)
    for webhook, answers in zip(result.webhooks, result.answers, strict=True):
        for event in webhook.events:
            click.echo("\n".join([ruler, *_event_lines(result, webhook, event)]))
        for repeated in answers[1:]:
            known = f"a redelivery, answered with {repeated.status}: known already, nothing new"
            click.echo("\n".join([ruler, *_row_lines("the same bytes again", known, "nothing")]))
    click.echo(ruler)


def _event_lines(result: DemoResult, webhook: DemoWebhook, expected: ExpectedEvent) -> Iterator[str]:
    """Yield the table's lines for one event: a row for each rule's decision."""
    event = result.stored(webhook, expected)
    came = f"{expected.type}, {webhook.source}\n{expected.label}"
    if event is None or not event.decisions:
        state = f"{event.state}: {event.reason}" if event else "not in the ledger: see below"
        yield from _row_lines(came, state, "nothing")
        return
    for decision in event.decisions:
        yield from _row_lines(came, _why(decision), "\n".join(_created(result, event, decision)) or "nothing")
        came = ""


def _why(decision: Decision) -> str:
    if decision.outcome is DecisionOutcome.MATCHED:
        return f"{decision.rule}: matched"
    return f"{decision.rule}: left alone\n{explain(decision.failed) if decision.failed else decision.reason}"


def _created(result: DemoResult, event: StoredEvent, decision: Decision) -> Iterator[str]:
    for task in result.tasks_of(event, decision.rule):
        yield f"{task.type} at {task.provider}"
        yield task.external_id or f"{task.state}: {task.reason or 'on its way'}"


def _row_lines(*cells: str) -> Iterator[str]:
    """Yield the lines of a row: each cell wrapped to its column, side by side."""
    wrapped = [
        [part for line in cell.split("\n") for part in textwrap.wrap(line, width, subsequent_indent="  ")]
        for cell, width in zip(cells, COLUMN_WIDTHS, strict=True)
    ]
    for parts in zip_longest(*wrapped, fillvalue=""):
        yield "  ".join(part.ljust(width) for part, width in zip(parts, COLUMN_WIDTHS, strict=True)).rstrip()
