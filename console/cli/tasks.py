"""Commands about tasks: `tasks` and `show` look, `retry`, `cancel` and `settle` decide.

None of them touches the broker: they change the ledger, and the workers' sweep finds what is due within a second. What a
selection changes is spread over few transactions; a command that dies half-way has changed each task or not, and selecting
again finds the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import click

from console.cli.options import (
    chunks,
    confirm,
    confirmation,
    existing_ledger,
    is_selection,
    json_option,
    ledger_to_list,
    limit_option,
    one_of,
    settings_in_force,
    task_selection,
)
from console.cli.output import (
    TABLE_LIMIT,
    Document,
    as_json,
    as_plain,
    at_second,
    counted,
    decision_lines,
    event_details,
    first_lines,
    person,
    print_json,
    print_listing,
    printable,
    printable_lines,
    short_name,
    table,
    task_details,
    task_document,
)
from rules.vocabulary import LedgerError, Problem, ProviderName, TaskState, TaskType, instant
from worker.clock import utc_now
from worker.ledger import (
    CANCELLED_STATES,
    RETRIED_STATES,
    AttemptRow,
    Ledger,
    StoredEvent,
    StoredTask,
    TaskSelection,
    why_not_cancelled,
    why_not_retried,
)
from worker.settings import Settings

#: How many tasks of a selection become due in a minute, unless told otherwise.
PER_MINUTE: Final = 60
#: What `cancel` selects, unless told otherwise: what would be sent if nobody did anything.
NOT_SENT: Final = (TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING)
#: Reasons that begin with the same so many characters are counted together.
REASON_BEGINS: Final = 60

#: A moment within a reason: what differs in it alone has the same reason.
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")

Refusal = Callable[[StoredTask], str | None]


@click.command("tasks")
@one_of("--state", TaskState, "Only tasks in this state.")
@one_of("--type", TaskType, "Only tasks of this type.")
@click.option("--rule", metavar="ID", help="Only tasks of this rule.")
@one_of("--provider", ProviderName, "Only tasks of this provider.")
@limit_option
@json_option
def list_tasks(limit: int | None, *, json_wanted: bool, **filters: Any) -> None:
    """List the touches that were planned and what became of them, newest first."""
    with ledger_to_list() as ledger:
        print_listing(
            ledger.queries.list_tasks(limit, **filters) if ledger else (),
            {
                "id": lambda task: task.id,
                "due (UTC)": lambda task: at_second(task.due_at),
                "state": lambda task: str(task.state),
                "type": lambda task: str(task.type),
                "rule": lambda task: task.rule,
                "contact": lambda task: short_name(task.contact),
            },
            task_document,
            noun="task",
            next_step="leadwire show ID",
            limit=limit,
            json_wanted=json_wanted,
        )


@click.command()
@click.argument("some_id", metavar="ID")
@json_option
def show(some_id: str, *, json_wanted: bool) -> None:
    """Show all that is known of one event or task.

    The beginning of an id is enough where only one begins so.
    """
    document: Document
    lines: Iterable[str]
    with existing_ledger() as ledger:
        if task := ledger.queries.task(some_id):
            attempts = ledger.queries.attempts(task.id)
            follow_ups = [one for one in ledger.queries.tasks_of(task.event_id) if one.parent == task.id]
            document, lines = task_details(task, attempts, follow_ups), _task_lines(task, attempts, follow_ups)
        elif event := ledger.queries.event(some_id):
            made = ledger.queries.tasks_of(event.id)
            document, lines = event_details(event, made), _event_lines(event, made)
        else:
            raise Problem(f"{some_id}: no event and no task has this id: see `leadwire events` and `leadwire tasks`")
    if json_wanted:
        print_json(document)
    else:
        click.echo(printable_lines(lines))


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--delivered", is_flag=True, help="The provider has it; EXTERNAL_ID is its id there, if you know it.")
@click.option("--not-delivered", is_flag=True, help="The provider does not have it: it is sent again, now.")
@click.argument("external_id", required=False)
def settle(task_id: str, external_id: str | None, *, delivered: bool, not_delivered: bool) -> None:
    """End the doubt about a task whose request may have been executed (state unknown).

    Look at the provider first: the task's description there ends in [lw:...], the first 12 characters of its key.
    """
    if delivered == not_delivered:
        raise click.UsageError("say either --delivered [EXTERNAL_ID] or --not-delivered")
    if external_id and not_delivered:
        raise click.UsageError("an EXTERNAL_ID goes with --delivered only: what was not delivered has none")
    with existing_ledger() as ledger:
        task = ledger.admin.settle(_existing(ledger, task_id).id, delivered, external_id, utc_now())
    click.echo(_state_line(task))


@click.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@task_selection("came into its state")
@one_of("--state", (*RETRIED_STATES, TaskState.UNKNOWN), "Only tasks in this state. [default: dead]")
@click.option(
    "--per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"So many of a selection become due in a minute. [default: {PER_MINUTE}]",
)
@confirmation
@json_option
def retry(
    task_ids: tuple[str, ...],
    state: TaskState | None,
    per_minute: int | None,
    *,
    dry_run: bool,
    yes: bool,
    json_wanted: bool,
    **chosen: Any,
) -> None:
    """Make tasks due now: dead, cancelled and suppressed ones begin anew, waiting ones stop waiting.

    By id, or by a selection: it is counted and confirmed, and its tasks become due one after the other. Attempts stay on
    record. A task in state unknown is settled first (`leadwire settle`): retrying it could touch a person twice.
    """
    selected = is_selection(task_ids, [state, *chosen.values()], "task")
    if state is TaskState.UNKNOWN:
        raise Problem(
            "unknown tasks may have been executed: find out, then: leadwire settle ID --delivered|--not-delivered"
        )
    change = _Change("retried", dry_run=dry_run, yes=yes, json_wanted=json_wanted)
    states = (state or TaskState.DEAD,)
    rate = per_minute or PER_MINUTE
    with existing_ledger() as ledger:
        if not selected:
            change.named(ledger, task_ids, why_not_retried, lambda task: ledger.admin.retry(task.id, utc_now()))
            return
        found = SelectedTasks.of(ledger.queries.select_tasks(TaskSelection(states=states, **chosen)), why_not_retried)
        minutes = -(-len(found.ids) // rate)
        question = f"retry {counted(len(found.ids), 'task')}, {rate} a minute, in about {counted(minutes, 'minute')}?"
        if change.is_confirmed(found, question):
            change.print_end(found, _retry_all(ledger, found, states, rate))


def _retry_all(ledger: Ledger, found: SelectedTasks, states: tuple[TaskState, ...], per_minute: int) -> int:
    """Make the tasks due one after the other; return how many were."""
    now, changed = utc_now(), 0
    gap = timedelta(minutes=1) / per_minute
    for part in chunks(list(enumerate(found.ids))):
        due = {task_id: now + place * gap for place, task_id in part}
        changed += len(ledger.admin.retry_many(due, states, utc_now()))
    return changed


@click.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@task_selection("was planned")
@one_of(
    "--state",
    (*CANCELLED_STATES, TaskState.DELIVERED),
    "Only tasks in this state; delivered goes with --at-provider. [default: planned, queued and waiting]",
)
@click.option("--reason", metavar="TEXT", help="Why; kept with the task.")
@click.option("--at-provider", is_flag=True, help="Have the provider cancel what it has already (Mindhunters only).")
@confirmation
@json_option
def cancel(
    task_ids: tuple[str, ...],
    state: TaskState | None,
    reason: str | None,
    *,
    at_provider: bool,
    dry_run: bool,
    yes: bool,
    json_wanted: bool,
    **chosen: Any,
) -> None:
    """End tasks that have not been sent: they are never made, unless they are retried.

    By id, or by a selection, which is counted and confirmed. What is being sent cannot be cancelled. What was delivered is
    cancelled with --at-provider, where the provider has a call for that: it answers whether it was in time.
    """
    selected = is_selection(task_ids, [state, *chosen.values()], "task")
    if state is TaskState.DELIVERED and not at_provider:
        raise click.UsageError("what was delivered can only be ended at its provider: add --at-provider")
    there = at_provider and state in {None, TaskState.DELIVERED}
    change = _Change("cancelled", dry_run=dry_run, yes=yes, json_wanted=json_wanted)
    settings = settings_in_force()
    with existing_ledger(settings) as ledger, ExitStack() as stack:
        canceller = _Canceller(ledger, settings, stack, reason, there=there)
        if not selected:
            change.named(ledger, task_ids, canceller.why_not, canceller.cancel)
            return
        default = (*NOT_SENT, TaskState.DELIVERED) if there else NOT_SENT
        wanted = TaskSelection(states=(state,) if state else default, by="created_at", **chosen)
        found = SelectedTasks.of(ledger.queries.select_tasks(wanted), canceller.why_not)
        if change.is_confirmed(found, f"cancel {counted(len(found.ids), 'task')}?"):
            change.print_end(found, canceller.cancel_all(found, wanted.states))


class _Canceller:
    """Cancels tasks: in the ledger, and with `there` also at the provider what it has."""

    def __init__(
        self, ledger: Ledger, settings: Settings, stack: ExitStack, reason: str | None, *, there: bool
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._stack = stack
        self._reason = reason
        self._there = there
        self._reached: dict[ProviderName, Any] = {}

    def why_not(self, task: StoredTask) -> str | None:
        """Return why a task cannot be cancelled; None when it can."""
        if not self._there or task.state is not TaskState.DELIVERED:
            return why_not_cancelled(task)
        if task.external_id is None:
            return f"task {task.id} is delivered, and nobody knows under which id {task.provider} has it: end it there"
        provider, _ = self._reach(task.provider)
        if provider.cancel_request(task.external_id) is None:
            return f"task {task.id} is delivered: {task.provider} has no call that cancels {task.external_id}: end it there"
        return None

    def cancel(self, task: StoredTask) -> StoredTask:
        """End a task; what its provider answered is kept before a refusal is raised as LedgerError."""
        if not self._there or task.state is not TaskState.DELIVERED or task.external_id is None:
            return self._ledger.admin.cancel(task.id, self._reason, utc_now())
        provider, transport = self._reach(task.provider)
        answer = provider.read_cancel(transport.send(provider.cancel_request(task.external_id)))
        noted = self._ledger.admin.cancelled_at_provider(
            task.id, answer.words, self._reason, utc_now(), taken=answer.taken
        )
        if not answer.taken:
            raise LedgerError(f"task {task.id} is not cancelled: {task.provider} answered {answer.words}")
        return noted

    def cancel_all(self, found: SelectedTasks, states: tuple[TaskState, ...]) -> int:
        """End what was found; return how many were."""
        changed = 0
        for part in chunks(found.ids):
            changed += len(self._ledger.admin.cancel_many(part, states, self._reason, utc_now()))
        for task_id in found.ids if self._there else ():
            task = self._ledger.queries.task(task_id)
            if task is None or task.state is not TaskState.DELIVERED:
                continue
            try:
                self.cancel(task)
                changed += 1
            except LedgerError as error:
                found.refusals.append(printable(str(error)))
                click.echo(found.refusals[-1], err=True)
        return changed

    def _reach(self, name: ProviderName) -> Any:
        from worker.context import reach

        if name not in self._reached:
            self._reached[name] = reach(self._settings, name)
            self._stack.callback(self._reached[name][1].close)
        return self._reached[name]


@dataclass(frozen=True, slots=True)
class SelectedTasks:
    """The result of a selection: the tasks, counts by state, rule, provider and reason, and why others are left out."""

    ids: list[str] = field(default_factory=list)
    groups: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tasks: Iterable[StoredTask], refusal_of: Refusal) -> SelectedTasks:
        """Read a selection and group it; a task is left out when `refusal_of` returns a reason for it."""
        found = cls()
        for task in tasks:
            if refusal := refusal_of(task):
                found.refusals.append(printable(refusal))
                continue
            found.ids.append(task.id)
            reason = _MOMENT.sub("...", task.reason or "-")
            begins = reason if len(reason) <= REASON_BEGINS else f"{reason[:REASON_BEGINS]}…"
            found.groups[str(task.state), task.rule, str(task.provider), begins] += 1
        return found

    @property
    def ordered(self) -> list[tuple[tuple[str, str, str, str], int]]:
        """The groups, the largest first."""
        return sorted(self.groups.items(), key=lambda item: (-item[1], item[0]))

    def document(self) -> Document:
        """Return it as `--json` prints it."""
        names = ("state", "rule", "provider", "reason")
        return {
            "selected": len(self.ids),
            "groups": [{**dict(zip(names, group, strict=True)), "tasks": number} for group, number in self.ordered],
            "refused": self.refusals,
        }

    def text(self) -> str:
        """Return it for a person."""
        lines = []
        if self.groups:
            rows = [(str(number), *group) for group, number in self.ordered[:TABLE_LIMIT]]
            lines = [table(("tasks", "state", "rule", "provider", "reason"), rows)]
        if len(self.groups) > TABLE_LIMIT:
            lines.append(f"and {counted(len(self.groups) - TABLE_LIMIT, 'more group')}")
        lines += first_lines([f"left out: {refusal}" for refusal in self.refusals])
        return "\n".join([*lines, f"{counted(len(self.ids), 'task')} selected"])


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of tasks that a person ordered, and how it is told; `verb` is its past participle."""

    verb: str
    dry_run: bool
    yes: bool
    json_wanted: bool

    def named(
        self, ledger: Ledger, task_ids: Sequence[str], refusal_of: Refusal, act: Callable[[StoredTask], StoredTask]
    ) -> None:
        """Change tasks named by their ids, each whatever became of the others. Raises Problem when any was refused."""
        changed: list[StoredTask] = []
        refusals: list[str] = []
        for task_id in task_ids:
            try:
                changed.append(self._one(_existing(ledger, task_id), refusal_of, act))
            except LedgerError as error:
                refusals.append(printable(str(error)))
                click.echo(refusals[-1], err=True)
        if self.json_wanted:
            tasks = [task_document(task) for task in changed]
            print_json({"dry_run": self.dry_run, "tasks": tasks, "refused": refusals})
        if refusals:
            raise Problem(f"{counted(len(refusals), 'task')} of {len(task_ids)} cannot be {self.verb}")

    def _one(self, task: StoredTask, refusal_of: Refusal, act: Callable[[StoredTask], StoredTask]) -> StoredTask:
        if refusal := refusal_of(task):
            raise LedgerError(refusal)
        done = task if self.dry_run else act(task)
        if not self.json_wanted:
            would = f"would be {self.verb}; now: " if self.dry_run else ""
            click.echo(f"{would}{_state_line(done)}")
        return done

    def is_confirmed(self, found: SelectedTasks, question: str) -> bool:
        """Show a selection and have a person agree to the question; False for a dry run."""
        if self.dry_run and self.json_wanted:
            print_json({"dry_run": True, **found.document()})
        elif self.dry_run or not self.json_wanted:
            click.echo(found.text(), err=not self.dry_run)
        if found.ids and not self.dry_run:
            confirm(question, yes=self.yes)
        return not self.dry_run

    def print_end(self, found: SelectedTasks, changed: int) -> None:
        """Tell how many tasks of a selection were changed."""
        if self.json_wanted:
            print_json({"dry_run": False, **found.document(), "changed": changed})
            return
        click.echo(f"{counted(changed, 'task')} {self.verb}")
        if changed < len(found.ids):
            click.echo(f"{counted(len(found.ids) - changed, 'task')} had changed meanwhile, or could not be", err=True)


def _existing(ledger: Ledger, task_id: str) -> StoredTask:
    task = ledger.queries.task(task_id)
    if task is None:
        raise LedgerError(f"{task_id}: no task has this id: see `leadwire tasks`")
    return task


def _state_line(task: StoredTask) -> str:
    known_as = f", at the provider {task.external_id}" if task.external_id else ""
    ended = task.external_id or task.state is TaskState.CANCELLED
    due = "" if ended else f", due {instant(task.due_at)}"
    return printable(f"{task.id}  {task.type}  {task.state}{known_as}{due}")


# What `show` tells a person


def _event_lines(stored: StoredEvent, made: list[StoredTask]) -> Iterator[str]:
    event = stored.event
    yield f"event {event.id}"
    yield from _fact_lines(
        {
            "state": str(stored.state) + (f": {stored.reason}" if stored.reason else ""),
            "type": event.type,
            "source": event.source,
            "occurred": instant(event.occurred_at),
            "received": instant(event.received_at),
            "subject": f"{event.subject.kind} {event.subject.id}" if event.subject else None,
            "contact": person(event.contact),
            "delivery": stored.delivery_id,
            "dedupe key": stored.dedupe_key,
            "rule set": stored.rule_set,
            "tries": str(stored.tries),
        }
    )
    contact = {name: value for name, value in as_plain(event.contact).items() if value is not None}
    for title, values in (("contact", contact), ("changed", dict(event.changed)), ("data", event.data)):
        yield f"{title}:"
        yield from _value_lines(values)
    yield "decisions:"
    yield from [f"  {line}" for one in stored.decisions for line in decision_lines(one)] or ["  none"]
    yield "tasks:"
    yield from map(_task_line, made) if made else ["  none"]


def _task_lines(task: StoredTask, attempts: list[AttemptRow], follow_ups: list[StoredTask]) -> Iterator[str]:
    yield f"task {task.id}"
    yield from _fact_lines(
        {
            "state": str(task.state) + (f": {task.reason}" if task.reason else ""),
            "type": f"{task.type} by {task.provider}",
            "rule": f"{task.rule}/{task.name} under {task.rule_set}",
            "event": task.event_id,
            "contact": person(task.contact),
            "due": instant(task.due_at),
            "expires": instant(task.expires_at) if task.expires_at else "never",
            "attempts": f"{task.attempts}, epoch {task.epoch}",
            "provider's id": task.external_id,
            "outcome": task.outcome,
            "follows on": task.parent,
            "note": task.note,
            "key": task.key,
            "created": instant(task.created_at),
            "updated": instant(task.updated_at),
        }
    )
    yield "fields:"
    yield from _value_lines(dict(task.fields))
    yield "attempts:"
    yield from [f"  {line}" for one in attempts for line in _attempt_lines(one)] or ["  none yet"]
    if task.reactions or follow_ups:
        yield "what followed:"
        yield from map(_task_line, follow_ups)
        if not follow_ups:
            yield f"  nothing yet; its rule answers {', '.join(task.reactions)}"


def _task_line(task: StoredTask) -> str:
    return f"  {task.id}  {task.type}  {task.rule}/{task.name}  {task.state}"


def _attempt_lines(attempt: AttemptRow) -> Iterator[str]:
    ended = instant(attempt.ended_at) if attempt.ended_at else "not ended"
    verdict = "given back before it began" if attempt.deferred else attempt.verdict or "no outcome recorded"
    status = f", status {attempt.status}" if attempt.status else ""
    yield f"{attempt.number}. {instant(attempt.started_at)} to {ended}: {verdict}{status}"
    if attempt.error:
        yield f"   {attempt.error}"


def _fact_lines(facts: dict[str, str | None]) -> list[str]:
    return [f"  {name:<14}{value or '-'}" for name, value in facts.items()]


def _value_lines(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [f"  {as_json(values)}"]
    return [f"  {printable(str(name)):<14} {as_json(one)}" for name, one in values.items()] or ["  none"]
