"""The orchestrator process: channels to the workers, the gRPC server, metrics, and an orderly end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import prometheus_client

from orchestrator.addresses import Resolve, resolve
from orchestrator.admission import Admission
from orchestrator.catalogue import Catalogue
from orchestrator.engine import AnswerEngine
from orchestrator.metrics import Metrics
from orchestrator.replicas import MakeStub, ReplicaPool, Stub
from orchestrator.retry_budget import RetryBudget
from orchestrator.service import OrchestratorService
from orchestrator.workers import DecoderClient, MllmClient
from superlink.profile import OrchestratorSettings, Profile, WorkerSettings
from superlink.serving import GrpcServer, check_address_is_free
from superlink.v1 import decoder_pb2_grpc, mllm_pb2_grpc, orchestrator_pb2_grpc

logger = logging.getLogger(__name__)


@asynccontextmanager
async def running_orchestrator(profile: Profile, resolve_address: Resolve = resolve) -> AsyncIterator[GrpcServer]:
    """The orchestrator of ``profile``, listening and ready; leaving stops it at once.

    It is ready as soon as it listens: which workers are, ``Describe`` says. ``resolve_address`` finds the replicas
    behind a name. Raises ConfigurationError when a port is in use.
    """
    settings = profile.orchestrator
    async with AsyncExitStack() as stack:
        metrics = Metrics()

        async def replicas(name: str, worker: WorkerSettings, make_stub: MakeStub[Stub]) -> ReplicaPool[Stub]:
            addresses = worker.replicas or (worker.address,)
            return await stack.enter_async_context(ReplicaPool(name, addresses, make_stub, metrics, resolve_address))

        mllm = MllmClient(
            await replicas("mllm", profile.mllm, mllm_pb2_grpc.MllmStub), RetryBudget(settings.retry_share), metrics
        )
        decoders = {
            name: DecoderClient(
                await replicas(name, worker, decoder_pb2_grpc.DecoderStub), RetryBudget(settings.retry_share), metrics
            )
            for name, worker in profile.decoders.items()
        }
        catalogue = Catalogue(mllm, decoders)
        stack.push_async_callback(catalogue.close)
        engine = AnswerEngine(mllm, decoders, catalogue, settings, metrics, profile.images)
        admissions = {kind: Admission(kind, settings.queue_budget_s, metrics) for kind in ("mllm", *decoders)}
        service = OrchestratorService(engine, catalogue, admissions, metrics, profile.gateway.request_timeout_s)
        server = GrpcServer(
            "orchestrator", settings.address, drain_timeout_s=settings.drain_timeout_s, retries_for_caller=True
        )
        server.add(orchestrator_pb2_grpc.add_OrchestratorServicer_to_server, service, "superlink.v1.Orchestrator")
        if settings.metrics_port:
            _serve_metrics(settings, metrics, stack)
        await server.start()
        await server.set_ready(True)
        logger.info("ready", extra={"address": server.address, "profile": profile.name})
        try:
            yield server
        finally:
            await server.stop()
            logger.info("stopped")


async def serve(profile: Profile) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    async with running_orchestrator(profile) as server:
        await server.run_until_signalled()


def _serve_metrics(settings: OrchestratorSettings, metrics: Metrics, stack: AsyncExitStack) -> None:
    """Metrics over HTTP on the host of the gRPC address, until ``stack`` closes."""
    host = settings.address.rpartition(":")[0]
    check_address_is_free(host, settings.metrics_port, "orchestrator.metrics_port")
    http_server, thread = prometheus_client.start_http_server(settings.metrics_port, host.strip("[]"), metrics.registry)
    stack.callback(thread.join)
    stack.callback(http_server.server_close)
    stack.callback(http_server.shutdown)
