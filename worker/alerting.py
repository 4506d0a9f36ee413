"""What an operator is told of a pause that begins: that a provider is left alone, until when and, in our own words, why."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from rules.vocabulary import instant
from worker.ledger import PauseKind, ProviderState

log = logging.getLogger(__name__)

#: What a pause that begins with an answer means for an operator.
_PAUSED: Final[Mapping[PauseKind | None, str]] = {
    PauseKind.ANSWER: "it does not take our credential, or its URL is wrong",
    PauseKind.BREAKER: "tries in a row failed",
    PauseKind.ASKED: "it got too many requests",
}


def tell_of(pause: ProviderState) -> None:
    """Tell once of a pause that begins; the provider's own words may hold personal data and stay in the ledger."""
    until = instant(pause.paused_until_at) if pause.paused_until_at else "it is resumed"
    status = re.match(r"[1-5][0-9]{2}\b", pause.reason or "")
    why = f"{status[0]}, {_PAUSED[pause.kind]}" if status else _PAUSED[pause.kind]
    log.error("%s is left alone until %s (%s); its tasks wait, see `leadwire tasks`", pause.name, until, why)
