"""THE SOURCES: who may post, how each signs, and how its payload becomes events. Data, with code for closed families only.

Pure: no clock, no randomness, no environment, no I/O. A new CRM is one YAML file in this folder.
"""

from __future__ import annotations

from ingress.sources.assembly import build
from ingress.sources.presets import PRESETS, preset
from ingress.sources.request import (
    CannotSignError,
    Rejected,
    SignedRequest,
    Unreadable,
    VerificationFailure,
    Verified,
    WebhookRequest,
    WebhookResponse,
)
from ingress.sources.source import Ack, Source

__all__ = [
    "PRESETS",
    "Ack",
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
