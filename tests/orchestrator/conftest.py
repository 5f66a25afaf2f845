import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# For scripted_workers, which the tests of the gateway use as well.
sys.path.insert(0, str(Path(__file__).parent))

from scripted_workers import ScriptedDeployment, scripted_deployment

from superlink.channels import open_channel
from superlink.v1 import orchestrator_pb2_grpc


@pytest.fixture
async def deployment() -> AsyncIterator[ScriptedDeployment]:
    async with scripted_deployment() as running:
        yield running


@pytest.fixture
async def orchestrator(deployment: ScriptedDeployment) -> AsyncIterator[orchestrator_pb2_grpc.OrchestratorStub]:
    async with open_channel(deployment.orchestrator.address) as channel:
        yield orchestrator_pb2_grpc.OrchestratorStub(channel)
