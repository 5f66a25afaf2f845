"""JSON has one kind of numbers: 3.0 is a whole one."""

from __future__ import annotations

from typing import Any


def with_whole_numbers(document: Any) -> Any:
    """``document`` with integers in place of floats that are whole."""
    if isinstance(document, float):
        return int(document) if document.is_integer() else document
    if isinstance(document, dict):
        return {name: with_whole_numbers(value) for name, value in document.items()}
    if isinstance(document, list):
        return [with_whole_numbers(value) for value in document]
    return document
