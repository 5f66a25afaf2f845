"""docs/comparison.md: every row says where what it says of Superlink can be seen, and that place is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "comparison.md"
COLUMNS = ["", "Ray Serve", "LitServe", "vLLM", "Roboflow", "Superlink", "where"]
VERDICT = re.compile(r"(\*\*)?[YPN?–](\*\*)?($|[;, ])|in its cloud$")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == len(COLUMNS) and row != COLUMNS and not row[0].startswith("---")]


def places(where: str) -> list[Path]:
    """Files that a cell names in backticks, or links to."""
    named = [REPOSITORY / name for name in re.findall(r"`([^`]+)`", where)]
    return named + [PAGE.parent / link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", where)]


def test_the_page_compares_row_by_row() -> None:
    assert len(rows()) >= 35


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_has_a_verdict_for_everyone_and_a_place_for_ours(row: list[str]) -> None:
    for cell in row[1:6]:
        assert VERDICT.match(cell), cell
    assert row[5].startswith("**")
    if not row[5].startswith("**N**"):
        assert places(row[6]), "it says where"
    for place in places(row[6]):
        assert place.exists(), place
