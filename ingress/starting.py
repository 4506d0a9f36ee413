"""What the long-running commands need before they run: what is checked first, and how the front door is put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from ingress import sources
from ingress.web import Server, create_app, listen
from rules.load import load
from rules.vocabulary import LedgerError, RuleError, SettingsError
from worker.dispatch import Dispatcher, celery_app
from worker.ledger import Ledger, open_ledger
from worker.rules_in_force import read_files, rules_in_force
from worker.settings import Secret, Settings
from worker.wiring import FRONT_DOOR_SECTIONS, broker_of, new_id, utc_now

log = logging.getLogger(__name__)


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
        book = load(read_files(settings.rules), settings.environment)
        _, faults = sources.build(book.sources, settings.environment, public_url=settings.public_url)
        if faults:
            raise RuleError(faults)
    except (RuleError, SettingsError) as fault:
        if not _has_rule_set(settings.database_url):
            raise
        log.error("the rules cannot be accepted; the last good set stays in force:\n%s", fault)
        return False
    return True


def _has_rule_set(database_url: str) -> bool:
    try:
        ledger = open_ledger(database_url)
    except LedgerError:  # not there yet, or of another version
        return False
    try:
        return ledger.latest_rule_set() is not None
    finally:
        ledger.close()


def build_front_door(settings: Settings) -> FrontDoor:
    """Put the front door together. Raises Problem with what is missing."""
    broker_url = broker_of(settings)
    ledger = open_ledger(settings.database_url)
    book = rules_in_force(settings.rules, ledger, settings.environment, resolve=FRONT_DOOR_SECTIONS, now=utc_now())
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
