"""What the long-running commands need before they run: what is checked first, and how the front door is put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from ingress import sources
from ingress.web import Server, create_app, listen
from rules.load import SECTIONS
from rules.rulebook import SourceText
from rules.vocabulary import Fault, LedgerError, RuleError, SettingsError
from worker.dispatch import Dispatcher, celery_app
from worker.ledger import Ledger, open_ledger
from worker.rules_in_force import accepted, read_files, rules_in_force
from worker.settings import Secret, Settings
from worker.wiring import FRONT_DOOR_SECTIONS, broker_of, new_id, utc_now

log = logging.getLogger(__name__)

#: A sender is told to come again before it hangs up: the most impatient ones wait two to five seconds.
BUSY_AFTER: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """The listening server and what it holds open."""

    server: Server
    ledger: Ledger
    dispatcher: Dispatcher

    def close(self) -> None:
        """Publish what waits and close the ledger."""
        self.dispatcher.close()
        self.ledger.close()


def check_start(settings: Settings) -> bool:
    """Refuse a start that cannot work, with every reason at once; say whether the rules folder can be accepted.

    When it cannot, but the ledger holds an earlier set, the start goes on with that one. Raises SettingsError for what is
    not set, RuleError for faulty rules with nothing to fall back to.
    """
    wanted = {
        "RULES": settings.rules,
        "MINDHUNTERS_URL": settings.mindhunters_url,
        "MINDHUNTERS_TOKEN": settings.mindhunters_token,
        "VAMBE_API_KEY": settings.vambe_api_key,
    }
    missing = [f"LEADWIRE_{name}" for name, value in wanted.items() if not value]
    if missing:
        raise SettingsError(
            f"not set: {', '.join(missing)}\nset them in the environment or in a file named .env, or try `leadwire demo`"
        )
    assert settings.rules is not None
    try:
        accepted(
            read_files(settings.rules),
            settings.environment,
            resolve=SECTIONS,
            faults_of=partial(_source_faults, settings),
        )
    except (RuleError, SettingsError) as fault:
        if not _last_good_set_works(settings):
            raise
        log.error("the rules cannot be accepted; the last good set stays in force:\n%s", fault)
        return False
    return True


def _source_faults(settings: Settings, texts: Sequence[SourceText]) -> Sequence[Fault]:
    return sources.build(texts, settings.environment, public_url=settings.public_url)[1]


def _last_good_set_works(settings: Settings) -> bool:
    """Say whether the ledger holds a rule set that can be accepted under today's variables."""
    try:
        ledger = open_ledger(settings.database_url)
    except LedgerError:  # not there yet, or of another version
        return False
    try:
        kept = ledger.latest_rule_set()
    finally:
        ledger.close()
    if kept is None:
        return False
    try:
        accepted(kept[1], settings.environment, resolve=SECTIONS, faults_of=partial(_source_faults, settings))
    except RuleError:
        return False
    return True


def build_front_door(settings: Settings) -> FrontDoor:
    """Put the front door together. Raises Problem with what is missing."""
    broker_url = broker_of(settings)
    ledger = open_ledger(settings.database_url, busy_timeout=BUSY_AFTER, wait=BUSY_AFTER)
    book = rules_in_force(
        settings.rules,
        ledger,
        settings.environment,
        resolve=FRONT_DOOR_SECTIONS,
        now=utc_now(),
        faults_of=partial(_source_faults, settings),
    )
    built, faults = sources.build(book.sources, settings.environment, public_url=settings.public_url)
    if faults:
        raise RuleError(faults)
    dispatcher = Dispatcher(celery_app(broker_url))
    app = create_app(sources=built, ledger=ledger, dispatcher=dispatcher, now=utc_now, new_id=partial(new_id, "ev"))
    try:
        server = listen(app, settings.host, settings.port)
    except OSError as error:
        raise SettingsError(f"LEADWIRE_PORT: cannot listen on {settings.host}:{settings.port}: {error}") from error
    return FrontDoor(server=server, ledger=ledger, dispatcher=dispatcher)


def run_flower(settings: Settings, password: Secret) -> None:
    """Run Flower until it is stopped."""
    app = celery_app(broker_of(settings))
    folder = settings.home / "flower"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    app.start(
        [
            "flower",
            "--address=127.0.0.1",
            f"--port={settings.flower_port}",
            f"--basic-auth=operator:{password.reveal()}",
            "--persistent=True",
            f"--db={folder / 'flower'}",
            "--state-save-interval=60000",
            "--max-tasks=20000",
            "--purge-offline-workers=300",
            f"--logging={settings.log_level}",
        ]
    )
