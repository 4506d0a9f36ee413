"""In which order a request is handled, and what its sender is told.

Size, handshake, verify (with the timestamp), decode, split, normalise, record in one transaction, dispatch, answer. A 2xx
stands on a record on disk. What is not verified is never stored; what is verified and cannot be read is kept and answered
with success, because its sender would only send it again. A storage that cannot be written is the source's busy status;
nothing a stranger can send is ever a 5xx. Source: Leadwire's design, section 5.

`begin` does all that comes before the record and `Recording` all that comes after it, so that nobody has to hold a thread
while the commit is under way; `keep` is the wait between them, for who has a thread to wait in.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final, Protocol

from ingress.sources import Rejected, Source, Unreadable, WebhookRequest, WebhookResponse
from rules.vocabulary import EventState, LedgerBusyError, LedgerError
from worker.ledger.types import Delivery, IncomingEvent, Recorded

log = logging.getLogger(__name__)

#: When a sender that was told "busy" may come again.
RETRY_AFTER_SECONDS: Final = 10
#: The largest body where nobody says otherwise.
BODY_LIMIT_BYTES: Final = 1024 * 1024
JSON_TYPE: Final = "application/json"
METHODS: Final = "GET, OPTIONS, POST"


class Outcome(StrEnum):
    """What a request came to; with the reason, what is counted."""

    #: Verified and recorded, be it as unreadable.
    ACCEPTED = "accepted"
    #: A question of the sender's, answered.
    HANDSHAKE = "handshake"
    #: Not believed.
    REJECTED = "rejected"
    #: Larger than the source allows.
    OVERSIZED = "oversized"
    #: A method that means nothing here.
    NOT_ALLOWED = "not_allowed"
    #: Posted to a source that nobody configured.
    UNKNOWN_SOURCE = "unknown_source"
    #: Cannot be recorded now.
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(WebhookResponse):
    """An answer, with what is to be counted."""

    outcome: Outcome
    reason: str = ""
    event_ids: tuple[str, ...] = field(default=())


class Recorder(Protocol):
    """What the front door needs of the ledger's inbox."""

    def record(self, delivery: Delivery, events: Sequence[IncomingEvent]) -> Recorded:
        """Keep a delivery and its new events in one transaction."""


class EventDispatch(Protocol):
    """What the front door needs of the dispatcher."""

    def events(self, ids: Sequence[str]) -> None:
        """Have these events processed; returns at once and may fail without harm: the sweep finds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a request wants kept before its sender is told anything."""

    source: Source
    delivery: Delivery
    events: Sequence[IncomingEvent]

    def stands(self, recorded: Recorded, dispatch: EventDispatch) -> Reply:
        """Dispatch what is on disk now and return what the sender is told. Never raises."""
        _dispatch(self.source, dispatch, recorded)
        return _accepted(self.source, self.events, recorded)

    def failed(self, fault: Exception) -> Reply:
        """Return what the sender is told when it could not be kept. Never raises."""
        try:
            return _failed(self.source, fault)
        finally:
            fault.__traceback__ = None  # its frames hold the request, and it is held by what they hold: a circle


def keep(recording: Recording, inbox: Recorder, dispatch: EventDispatch) -> Reply:
    """Record, wait for it, and return what the sender is told. Never raises."""
    try:
        recorded = inbox.record(recording.delivery, recording.events)
    except Exception as fault:  # noqa: BLE001 - nothing may get past
        return recording.failed(fault)
    return recording.stands(recorded, dispatch)


def begin(
    received: WebhookRequest,
    source: Source,
    now: datetime,
    new_id: Callable[[], str],
    *,
    body_limit_bytes: int = BODY_LIMIT_BYTES,
) -> Reply | Recording:
    """Return what the sender is told, or what has to be recorded first. Never raises, never waits for anything."""
    limit_bytes = source.body_limit_bytes or body_limit_bytes
    if len(received.body) > limit_bytes:
        return oversized(limit_bytes)
    try:
        return _begin(received, source, now, new_id)
    except Exception as fault:  # noqa: BLE001 - nothing may get past
        return _failed(source, fault)


def busy(source: Source | None, reason: str) -> Reply:
    """Return the answer that makes a sender come again; without a source, 503."""
    return Reply(
        status=source.ack.busy_status if source else 503,
        body=_json(status="busy", reason="cannot record right now; send it again"),
        headers={"content-type": JSON_TYPE, "retry-after": str(RETRY_AFTER_SECONDS)},
        outcome=Outcome.BUSY,
        reason=reason,
    )


def oversized(limit_bytes: int) -> Reply:
    """Return the answer to a body that is too large."""
    return Reply(
        status=413,
        body=_json(status="refused", reason=f"the body is larger than {limit_bytes} bytes"),
        headers={"content-type": JSON_TYPE},
        outcome=Outcome.OVERSIZED,
    )


def refusal(reason: str) -> bytes:
    """Return the body of a refusal that no source has a part in."""
    return _json(status="refused", reason=reason)


def no_such_source() -> Reply:
    """Return the answer to a request for a source that is not configured."""
    return Reply(
        status=404,
        body=_json(
            status="unknown", reason="there is no such source; check the address against the sources of your rules"
        ),
        headers={"content-type": JSON_TYPE},
        outcome=Outcome.UNKNOWN_SOURCE,
    )


def _failed(source: Source, fault: Exception) -> Reply:
    if isinstance(fault, LedgerBusyError):
        log.warning("%s: cannot record now: %s", source.name, fault)
        return busy(source, "ledger_busy")
    if isinstance(fault, LedgerError):
        log.error("%s: cannot record: %s", source.name, fault)
        return busy(source, "ledger_fault")
    log.error("%s: unexpected %s at %s", source.name, type(fault).__name__, _where(fault))
    return busy(source, "unexpected")


def _begin(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> Reply | Recording:
    if received.method != "POST":
        asked = source.handshake(received) if received.method in ("GET", "OPTIONS") else None
        return _handshake(asked) if asked else _not_allowed()
    proof = source.verify(received, now)
    if isinstance(proof, Rejected):
        log.warning("%s: rejected: %s (%s)", source.name, proof.reason, proof.detail)
        return Reply(
            status=401,
            body=_json(status="rejected", reason=proof.reason),
            headers={"content-type": JSON_TYPE},
            outcome=Outcome.REJECTED,
            reason=proof.reason,
        )
    asked = source.challenge(received)
    if asked:
        return _handshake(asked)
    events = _events(received, source, now, new_id)
    return Recording(source=source, delivery=_delivery(received, source, now, new_id), events=events)


def _events(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> list[IncomingEvent]:
    try:
        read = source.read(received, now, new_id)
    except Exception as fault:  # noqa: BLE001 - a verified body must be kept whatever reading it does
        log.error("%s: reading failed: %s at %s", source.name, type(fault).__name__, _where(fault))
        read = Unreadable(reason=f"reading it failed: {type(fault).__name__}; please report this")
    if isinstance(read, Unreadable):
        log.warning("%s: verified and unreadable: %s", source.name, read.reason)
        return [source.unreadable(received, read.reason, now, new_id())]
    return read


def _delivery(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> Delivery:
    headers, body = source.kept(received)
    return Delivery(
        id=f"dl_{new_id().rpartition('_')[2]}",
        source=source.name,
        received_at=now,
        headers=headers,
        body=body,
        content_hash=hashlib.sha256(received.body).hexdigest(),
    )


def _dispatch(source: Source, dispatch: EventDispatch, recorded: Recorded) -> None:
    if not recorded.event_ids:
        return
    try:
        dispatch.events(recorded.event_ids)
    except Exception as fault:  # noqa: BLE001 - it is on disk: the sweep finds it
        log.warning("%s: cannot dispatch: %s; the sweep will", source.name, type(fault).__name__)


def _accepted(source: Source, events: Sequence[IncomingEvent], recorded: Recorded) -> Reply:
    body = source.ack.body
    if body is None:
        unreadable = sum(event.state is EventState.UNREADABLE for event in events)
        content = _counts(len(recorded.event_ids), recorded.duplicates, recorded.conflicts, unreadable)
    else:
        content = body.encode()
    content_type = source.ack.content_type or (JSON_TYPE if body is None else "text/plain; charset=utf-8")
    return Reply(
        status=source.ack.status,
        body=content,
        headers={"content-type": content_type},
        outcome=Outcome.ACCEPTED,
        event_ids=recorded.event_ids,
    )


@lru_cache(maxsize=256)
def _counts(events: int, duplicates: int, conflicts: int, unreadable: int) -> bytes:
    extra = {"conflicts": conflicts, "unreadable": unreadable}
    given = {name: count for name, count in extra.items() if count}
    return _json(status="accepted", events=events, duplicates=duplicates, **given)


def _handshake(answer: WebhookResponse) -> Reply:
    return Reply(status=answer.status, body=answer.body, headers=answer.headers, outcome=Outcome.HANDSHAKE)


def _not_allowed() -> Reply:
    return Reply(
        status=405,
        body=_json(status="refused", reason="this address takes webhooks: POST"),
        headers={"content-type": JSON_TYPE, "allow": METHODS},
        outcome=Outcome.NOT_ALLOWED,
    )


def _json(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _where(fault: BaseException) -> str:
    """Return where an exception was raised; its message may quote a payload and is left out."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} ({code.co_name})"
