import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

# For small_decoder, which tests import and also start as a process.
sys.path.insert(0, str(Path(__file__).parent))

from small_decoder import SmallDecoderService, make_profile, save_small_decoder

from services.runtime.metrics import WorkerMetrics
from superlink.channels import open_channel
from superlink.profile import BatchLimits
from superlink.serving import GrpcServer
from superlink.v1 import decoder_pb2_grpc


class RunningService:
    """A worker's service in this process behind a real gRPC server."""

    def __init__(self, service: SmallDecoderService, metrics: WorkerMetrics, server: GrpcServer) -> None:
        self.service = service
        self.metrics = metrics
        self.server = server
        self.channel: grpc.aio.Channel = open_channel(server.address)
        self.stub = decoder_pb2_grpc.DecoderStub(self.channel)


StartService = Callable[..., Awaitable[RunningService]]


@pytest.fixture
async def start_service(tmp_path: Path) -> AsyncIterator[StartService]:
    running: list[RunningService] = []

    async def start(
        *, delay_s: float = 0.0, batch: BatchLimits | None = None, feature_cache_entries: int = 64
    ) -> RunningService:
        save_small_decoder(tmp_path / "weights", delay_s=delay_s)
        profile = make_profile(tmp_path / "weights", batch=batch, feature_cache_entries=feature_cache_entries)
        metrics = WorkerMetrics("small")
        service = SmallDecoderService(profile, profile.decoders["small"], metrics)
        server = GrpcServer("small", "127.0.0.1:0", drain_timeout_s=5)
        service.register(server)
        await server.start()
        await service.start()
        await server.set_ready(True)
        running.append(RunningService(service, metrics, server))
        return running[-1]

    yield start
    for one in running:
        await one.channel.close()
        await one.server.stop()
        await one.service.close()
