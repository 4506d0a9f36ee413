"""What the tests of rules share."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no fault: what must be quick has a test of its own.
settings.register_profile("rules")
settings.load_profile("rules")
