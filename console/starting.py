"""Start-up of the long-running commands: the checks before a start, and building the ingress."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from pydantic import SecretStr

from console.data_folder import operator_token
from console.operator import OperatorServer, SnapshotReader, create_operator_app
from ingress import sources
from ingress.app import Readiness, create_app, largest_body_bytes
from ingress.processes import bind
from ingress.request_counts import RequestCounts
from ingress.server import WebhookServer
from rules.loader import SECTIONS
from rules.rule_set import RuleSet, SourceText
from rules.vocabulary import LedgerError, RuleError, RuleFault, SettingsError
from worker.broker import QueueDepths, celery_app
from worker.clock import new_id, utc_now
from worker.ledger import Ledger, open_ledger
from worker.publisher import Publisher
from worker.rule_sets import INGRESS_SECTIONS, accepted, read_files, rules_in_force
from worker.settings import Settings, broker_of

log = logging.getLogger(__name__)

#: A sender is told to come again before it hangs up: the most impatient ones wait two to five seconds.
BUSY_AFTER: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressProcess:
    """The webhook server, the operator port (in one of several processes), and the resources they use."""

    server: WebhookServer
    operator: OperatorServer | None
    requests: RequestCounts
    ledger: Ledger
    publisher: Publisher

    def close(self) -> None:
        """Publish queued messages, write request counts, and close the ledger."""
        if self.operator is not None:
            self.operator.close()
        self.publisher.close()
        self.requests.close()
        self.ledger.close()


def check_start(settings: Settings) -> bool:
    """Check that a start can work, and report all faults at once; return whether the rules folder is valid.

    With an invalid folder the start goes on if the ledger holds an earlier rule set. Raises SettingsError for missing settings,
    RuleError for faulty rules without an earlier set.
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


def _source_faults(settings: Settings, texts: Sequence[SourceText]) -> Sequence[RuleFault]:
    return sources.build(texts, settings.environment, public_url=settings.public_url)[1]


def _last_good_set_works(settings: Settings) -> bool:
    """Say whether the ledger holds a rule set that can be accepted under today's variables."""
    try:
        ledger = open_ledger(settings.database_url)
    except LedgerError:  # not there yet, or of another version
        return False
    try:
        kept = ledger.rule_sets.latest()
    finally:
        ledger.close()
    if kept is None:
        return False
    try:
        accepted(kept[1], settings.environment, resolve=SECTIONS, faults_of=partial(_source_faults, settings))
    except RuleError:
        return False
    return True


def bind_public_port(settings: Settings) -> Sequence[socket.socket]:
    """Bind the public port. Raises SettingsError when that fails."""
    try:
        return bind(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(f"LEADWIRE_PORT: cannot listen on {settings.host}:{settings.port}: {error}") from error


def build_ingress(
    settings: Settings, sockets: Sequence[socket.socket], *, operator_port: bool = True
) -> IngressProcess:
    """Build an ingress process; its operator port, if wanted, is already serving. Raises Problem that lists what is missing."""
    broker_url = broker_of(settings)
    with ExitStack() as undone:
        for sock in sockets:
            undone.callback(sock.close)
        ledger = open_ledger(settings.database_url, busy_timeout=BUSY_AFTER, wait=BUSY_AFTER)
        undone.callback(ledger.close)
        rule_set = rules_in_force(
            settings.rules,
            ledger,
            settings.environment,
            resolve=INGRESS_SECTIONS,
            now=utc_now(),
            faults_of=partial(_source_faults, settings),
        )
        built, faults = sources.build(rule_set.sources, settings.environment, public_url=settings.public_url)
        if faults:
            raise RuleError(faults)
        publisher = Publisher(celery_app(broker_url))
        undone.callback(publisher.close)
        requests = RequestCounts(ledger.inbox)
        operator = None
        if operator_port:
            watch = SnapshotReader(
                ledger=ledger,
                requests=requests,
                now=utc_now,
                queues=QueueDepths(celery_app(broker_url)).read,
                sources=built,
                refused=_is_refused(settings, rule_set),
            )
            operator = _operator_port(settings, watch, Readiness(ledger))
            undone.callback(operator.close)
        app = create_app(built, ledger, publisher, requests, now=utc_now, new_id=partial(new_id, "ev"))
        limit_bytes = largest_body_bytes(built)
        server = WebhookServer(
            app, sockets, ledger.inbox, requests, body_limit_bytes=limit_bytes, busy_after=BUSY_AFTER
        )
        undone.pop_all()
    requests.start()
    if operator is not None:
        operator.start()
        log.info("metrics and status are at port %s of %s, behind the operator token", operator.port, operator.host)
    return IngressProcess(server=server, operator=operator, requests=requests, ledger=ledger, publisher=publisher)


def _operator_port(settings: Settings, watch: SnapshotReader, readiness: Readiness) -> OperatorServer:
    """Return the operator port, which listens and does not serve yet."""
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = SecretStr(operator_token(settings))
    except OSError as error:
        raise SettingsError(
            f"LEADWIRE_OPERATOR_TOKEN is not set, and none can be kept in {settings.home}: {error.strerror}"
        ) from error
    app = create_operator_app(watch=watch, token=token, reasons=readiness.reasons)
    host, port = settings.operator_host, settings.operator_port
    try:
        return OperatorServer(app, host, port)
    except OSError as error:
        raise SettingsError(
            f"LEADWIRE_OPERATOR_PORT: cannot listen on port {port} of {host}: {error.strerror}; "
            "several ingresses on one machine need one each: choose another, or 0 for a free one"
        ) from error


def _is_refused(settings: Settings, rule_set: RuleSet) -> bool:
    """Say whether the rules in force are not those of the folder: it could not be accepted, or is not named."""
    try:
        return settings.rules is None or read_files(settings.rules) != dict(rule_set.files)
    except SettingsError:
        return True
