import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# For scripted_workers, which the tests of the orchestrator use as well, and for the modules beside this file.
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator"))
sys.path.insert(0, str(Path(__file__).parent))

from live_gateway import LiveGateway, live_gateway
from request_bodies import encode_picture


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


@pytest.fixture(scope="session")
def png() -> bytes:
    return encode_picture()
