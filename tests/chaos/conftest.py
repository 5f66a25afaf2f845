from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stack import ChaosStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    """Every test leaves it ready."""
    with ChaosStack(tmp_path_factory.mktemp("chaos") / "stack") as running:
        yield running
