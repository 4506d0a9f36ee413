"""Sources: who may post webhooks, how each signs them, and how its payload becomes events.

A source is data, with code for closed families only; a new CRM is one YAML file in this folder. `schema` says what may be
written, `verify` whether a request is genuine, `parse` what its bytes hold, `mapping` which events that is, and `source` ties
them together. All of it is pure: no clock, no randomness, no environment, no I/O.
"""

from __future__ import annotations

from ingress.sources.schema import PRESETS, preset
from ingress.sources.source import Source, Unreadable, build
from ingress.sources.verify import (
    CannotSignError,
    Rejected,
    SignedRequest,
    VerificationFailure,
    Verified,
    WebhookRequest,
    WebhookResponse,
)

__all__ = [
    "PRESETS",
    "CannotSignError",
    "Rejected",
    "SignedRequest",
    "Source",
    "Unreadable",
    "VerificationFailure",
    "Verified",
    "WebhookRequest",
    "WebhookResponse",
    "build",
    "preset",
]
