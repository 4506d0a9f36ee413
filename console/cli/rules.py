"""Commands about rule files: `check` them, `explain` what they decide, print their `schema`.

`check` exits 0 when the files can be put in force, 1 with every fault at its `file:line:column`, 2 when there is nothing to
check. `explain` tells each rule's decision, from the ledger or, for a file, without one.
"""

from __future__ import annotations

import errno
from dataclasses import asdict
from pathlib import Path

import click

from console.cli.explaining import explain_file, explain_stored
from console.cli.surroundings import existing_ledger, settings_in_force
from console.cli.words import counted, document, printable, shortened
from ingress import sources
from ingress.sources.schema import definitions as source_definitions
from rules.loader import Files, in_order, inspect, load
from rules.rule_set import RuleSet
from rules.rule_tests import run_rule_tests
from rules.schema import json_schema
from rules.vocabulary import Problem, RuleError, RuleFault
from worker.context import WORKER_SECTIONS, utc_now
from worker.rule_sets import read_files, together, unread_folders
from worker.settings import Settings


@click.command()
@click.argument("path", required=False)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--require-rules", is_flag=True, help="No rules or no sources is a fault too: for deployments.")
@click.pass_context
def check(ctx: click.Context, path: str | None, *, json_wanted: bool, require_rules: bool) -> None:
    """Read rule files, resolve their variables, build their sources and run the rules' own tests.

    PATH is a folder or one file; without it, what LEADWIRE_RULES names. In a folder every file named *.yaml or *.yml
    counts; hidden ones and sub-folders do not. Exit code: 0 good, 1 faults, 2 wrong use.
    """
    settings = settings_in_force()
    place, shown_as = rules_place(settings, path)
    files = read_files(place, shown_as=shown_as)
    rule_set, faults, warnings = _read(files, settings)
    warnings = [*warnings, *unread_folders(place, shown_as=shown_as)]
    if require_rules and rule_set is not None:
        faults = [*faults, *_nothing_to_do(rule_set, shown_as)]
    if json_wanted:
        click.echo(document(_result(files, rule_set, faults, warnings)))
    else:
        for warning in warnings:
            click.echo(f"warning: {printable(str(warning))}")
        for fault in faults:
            click.echo(printable(str(fault)))
        click.echo(_closing(shown_as, files, rule_set, faults))
    ctx.exit(1 if faults else 0)


@click.command()
@click.argument("what", metavar="EVENT_ID|FILE", required=False)
@click.option("--last", is_flag=True, help="The event that came in last.")
@click.option("--rules", "rules_path", metavar="PATH", help="For FILE: the rules to explain with, not LEADWIRE_RULES.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document and nothing else.")
def explain(what: str | None, rules_path: str | None, *, last: bool, json_wanted: bool) -> None:
    """Say for one event what every rule decided and why, and what became of its tasks.

    EVENT_ID (its beginning is enough) or --last explains an event of the ledger. FILE is a JSON file with an event as a
    rule's tests give it ({"type": "lead.created", "contact": {...}, "data": {...}}), or - for standard input: it is
    explained without a ledger, and nothing is made.
    """
    if bool(what) == last:
        raise click.UsageError("name one event: EVENT_ID, --last, or a FILE with an event as JSON")
    settings = settings_in_force()
    if what and (what == "-" or _is_there(Path(what)) or what.endswith(".json") or "/" in what):
        place, shown_as = rules_place(settings, rules_path)
        rule_set = _to_explain_with(read_files(place, shown_as=shown_as), settings)
        click.echo(explain_file(Path(what), rule_set, now=utc_now(), json_wanted=json_wanted))
        return
    if rules_path:
        raise click.UsageError("--rules goes with FILE: an event of the ledger keeps the decisions it was given")
    with existing_ledger(settings) as ledger:
        stored = ledger.queries.event(what) if what else ledger.queries.last_event()
        if stored is None:
            nothing = f"{shortened(what or '')}: no event has this id: see `leadwire events`"
            raise Problem(nothing if what else "no event came in yet: `leadwire send SOURCE` posts a sample")
        kept = ledger.rule_sets.get(stored.rule_set) if stored.rule_set else None
        text = explain_stored(
            stored, ledger.queries.tasks_of(stored.id), kept, settings.environment, json_wanted=json_wanted
        )
    click.echo(text)


@click.command()
def schema() -> None:
    """Print the JSON Schema of rule files, for editors that complete and check while you type."""
    made = json_schema()
    made["$defs"] |= source_definitions()
    made["properties"]["sources"]["additionalProperties"] = {"$ref": "#/$defs/SourceSection"}
    click.echo(document(made))


def rules_place(settings: Settings, path: str | None) -> tuple[Path, str]:
    """Return where the rules are and how messages name that place; no such place is a wrong use."""
    if path is None and settings.rules is None:
        raise click.UsageError("say which rules: a PATH, or LEADWIRE_RULES in the environment")
    place = Path(path) if path is not None else settings.rules
    assert place is not None
    if path == "" or not _is_there(place):
        named = shortened(str(path or place)) if path != "" else "PATH is empty"
        raise click.UsageError(f"{named}: there is no such file or folder")
    if path is None and place.is_relative_to(Path.cwd()):
        return place, str(place.relative_to(Path.cwd()))
    return place, path or str(place)


def _is_there(place: Path) -> bool:
    """Say whether there is something at a place, readable or not; a name that no file can have is not there."""
    try:
        place.stat()
    except PermissionError:
        return True
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) == errno.ELOOP
    return True


def _to_explain_with(files: Files, settings: Settings) -> RuleSet:
    """Return the rule set; where all that is wrong is unset variables, with them as written, and a word about it."""
    try:
        return load(files, settings.environment, resolve=WORKER_SECTIONS)
    except RuleError as error:
        try:
            rule_set = load(files, {}, resolve=frozenset())
        except RuleError:
            raise error from None
    click.echo(
        "note: some variables are not set here: ${NAME} stands for them, also where values are compared", err=True
    )
    return rule_set


def _read(files: Files, settings: Settings) -> tuple[RuleSet | None, list[RuleFault], list[RuleFault]]:
    """Return the rule set, all that keeps it from being put in force, and what its author should know."""
    found = inspect(files, settings.environment)
    built, source_faults = sources.build(found.sources, settings.environment, public_url=settings.public_url)
    proved = run_rule_tests(found.rule_set, now=utc_now()) if found.rule_set else []
    faults = together(found.faults, [*source_faults, *proved], files)
    warned = [*found.warnings, *(warning for source in built.values() for warning in source.warnings)]
    return found.rule_set, list(faults), list(in_order(warned, files))


def _nothing_to_do(rule_set: RuleSet, shown_as: str) -> list[RuleFault]:
    """Return what a folder lacks that somebody wants to work with: an empty one is good, and never what was meant."""
    lacking = {
        "no rules: every event would be recorded and ignored: put your rule files here": rule_set.rules,
        "no sources: every webhook would be answered with 404: say under `sources` who may post": rule_set.sources,
    }
    return [
        RuleFault(file=shown_as, line=1, column=1, path="", message=message)
        for message, there in lacking.items()
        if not there
    ]


def _tests(rule_set: RuleSet) -> int:
    return sum(len(rule.tests) for rule in rule_set.rules)


def _result(
    files: Files, rule_set: RuleSet | None, faults: list[RuleFault], warnings: list[RuleFault]
) -> dict[str, object]:
    return {
        "good": not faults,
        "files": list(files),
        "rules": [rule.id for rule in rule_set.rules] if rule_set else None,
        "sources": [source.name for source in rule_set.sources] if rule_set else None,
        "tests": _tests(rule_set) if rule_set else None,
        "rule_set": rule_set.version if rule_set else None,
        "faults": [asdict(fault) for fault in faults],
        "warnings": [asdict(warning) for warning in warnings],
    }


def _closing(shown_as: str, files: Files, rule_set: RuleSet | None, faults: list[RuleFault]) -> str:
    if faults or rule_set is None:
        of = counted(len({fault.file for fault in faults}), "file")
        return (
            f"{counted(len(faults), 'fault')} in {of}: mend them and run `leadwire check {printable(shown_as)}` again."
        )
    if not files:
        return f"{printable(shown_as)} holds no rule files: their names end in .yaml. Nothing listens to anything."
    rules, own = counted(len(rule_set.rules), "rule"), counted(len(rule_set.sources), "source")
    return (
        f"{counted(len(files), 'file')} good: {rules}, {own}, {counted(_tests(rule_set), 'test')} passed. "
        f"`LEADWIRE_RULES={printable(shown_as)} leadwire up` puts them to work."
    )


commands = (check, explain, schema)
