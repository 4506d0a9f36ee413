"""Fixtures that several test folders need."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest


@pytest.fixture
def now() -> datetime:
    """Return the moment at which tests happen: Monday, 2 March 2026, 13:00 UTC, 10:00 in Santiago."""
    return datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
