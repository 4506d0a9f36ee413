"""A stand-in for an object of which a test wants some attributes otherwise."""

from __future__ import annotations


class Instead:
    """Has the attributes that are given, and all others of the original."""

    def __init__(self, original, **others):
        self._original = original
        vars(self).update(others)

    def __getattr__(self, name):
        return getattr(self._original, name)
