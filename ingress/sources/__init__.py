"""Sources: who may post webhooks, how each signs them, and how its payload becomes events.

A source is data (YAML); only fixed families of methods are code. A new CRM is one YAML file in this folder. `schema` defines
and checks that file, `verify` checks requests, `parse` decodes bodies, `mapping` makes events of them, and `source` combines
these. All of it is pure: no clock, randomness, environment or I/O.
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
