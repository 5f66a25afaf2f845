"""Why a stack cannot be started, or does not run."""

from __future__ import annotations


class StackError(Exception):
    """The stack could not be started, or its state not be read. The text says what, why, and what to do."""
