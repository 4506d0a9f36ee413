"""The one fault of reading a body; it never leaves `ingress/sources`: `Source.read` makes a value of it."""

from __future__ import annotations

from rules.vocabulary import Problem


class UnreadableBodyError(Problem):
    """No value can be made of a body; the message is one sentence for the operator and quotes nothing of the body."""
