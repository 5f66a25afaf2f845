"""The FastAPI application of a profile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from fastapi import FastAPI, Request
from redis.asyncio import Redis
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from gateway import batches, chat, detect, drawing, files, plain_answer, probes
from gateway.access import Access
from gateway.batch_traffic import GiveWay
from gateway.deployment import Deployment, deployment_of
from gateway.disconnects import ClientLeft
from gateway.idempotency import Idempotency, KeptAnswers
from gateway.image_urls import ImageFetcher
from gateway.limits import Limits
from gateway.load_shedding import LoadShedding
from gateway.mcp_endpoint import McpEndpoint
from gateway.metrics import Metrics
from gateway.middleware import CLIENT_LEFT, BodyLimit, RequestMiddleware, is_probe
from gateway.openapi_document import document_the_rest
from gateway.orchestrator_client import OrchestratorClient
from gateway.playground.pages import playground_router
from gateway.problems import add_problem_handlers
from gateway.unread_bodies import UnreadBodies
from gateway.uploads import OVERHEAD_BYTES
from superlink.api_keys import ApiKeys
from superlink.artifacts import ArtifactStore, open_store
from superlink.batch_store import open_batches
from superlink.channels import open_channel
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.profile import GatewaySettings, Profile
from superlink.public_hosts import Resolver, SystemResolver
from superlink.redis_connection import URL_VARIABLE, connect, redis_url_of
from superlink.webhook_secrets import with_webhook_secret

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 3600.0

DESCRIPTION = """Ask about images. The model answers in text and calls vision tools for what the answer needs; what the
tools find is tied to the words that asked for it. All failures are problem documents (RFC 9457)."""


def create_application(profile: Profile, resolve: Resolver | None = None) -> FastAPI:
    """An application that talks to the orchestrator of ``profile``; the channel is opened when it starts.

    ``resolve`` looks up the hosts of images; None: as this machine does. Raises ConfigurationError when the profile
    needs a Redis and none is named, or keeps files where nothing can be kept.
    """
    metrics = Metrics()
    redis = _redis_of(profile.gateway)
    agents = McpEndpoint(profile.gateway)
    artifacts = open_store(profile)
    profile = with_webhook_secret(profile)

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        fetcher = ImageFetcher(profile.gateway.image_urls, profile.images, resolve or SystemResolver())
        async with open_channel(profile.orchestrator.address) as channel, aclosing(fetcher), agents.running():
            orchestrator = OrchestratorClient(channel)
            application.state.deployment = Deployment(
                profile, orchestrator, metrics, fetcher, artifacts, open_batches(profile), redis
            )
            sweeping = asyncio.create_task(_keep_sweeping(artifacts))
            yield
            sweeping.cancel()
        if redis is not None:
            await redis.aclose()

    application = FastAPI(
        title="Superlink",
        version="1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        # The span of a request, in the trace that its `traceparent` names; logs and metrics are our own.
        telemetry={"exclude": is_probe, "operation_spans": False, "logs": False, "metrics": False},
    )
    # The one added last is the outermost of these. Around them are the framework's own, and two more around those.
    if redis is not None:
        answers = KeptAnswers(redis, profile.gateway.idempotency_keep_s)
        application.add_middleware(Idempotency, answers=answers, settings=profile.gateway)
        keys = profile.gateway.keys
        if keys.required:
            application.add_middleware(
                Access,
                keys=ApiKeys(redis),
                limits=Limits(redis),
                defaults=keys.limits,
                batch_share=profile.batches.share_of_limits,
                metrics=metrics,
            )
    application.add_middleware(GiveWay, most=profile.batches.max_requests_in_flight, metrics=metrics)
    uploads = {files.FILES: profile.artifacts.max_file_bytes + OVERHEAD_BYTES}
    application.add_middleware(BodyLimit, max_body_bytes=profile.gateway.max_body_bytes, by_path=uploads)
    application.add_middleware(RequestMiddleware, metrics=metrics)
    rooms = (chat, plain_answer, detect, drawing, files, batches, probes, agents)
    routers = [*(room.router for room in rooms), playground_router()]
    add_problem_handlers(application, routers)
    for departure in (ClientLeft, ClientDisconnect):
        application.add_exception_handler(departure, _on_client_left)
    for router in routers:
        application.include_router(router)
    document_the_rest(application, needs_keys=profile.gateway.keys.required, keeps_answers=redis is not None)
    # Outside of the framework's own layers, which cost more than a refusal.
    application.middleware_stack = UnreadBodies(LoadShedding(application.build_middleware_stack(), metrics))
    return application


def _redis_of(settings: GatewaySettings) -> Redis | None:
    url = redis_url_of(settings)
    if not url and settings.keys.required:
        raise ConfigurationError(
            "gateway.keys.required: API keys and their limits are kept in Redis, and none is named. Set "
            f"gateway.redis_url in the profile or {URL_VARIABLE} in the environment, like redis://127.0.0.1:6379/0."
        )
    return connect(url) if url else None


async def _keep_sweeping(artifacts: ArtifactStore) -> None:
    """Delete files that have expired, now and every hour. Several gateways may do so at the same time."""
    while True:
        try:
            swept = await asyncio.to_thread(artifacts.sweep)
            logger.info("files swept", extra={"swept": swept})
        except SuperlinkError:
            logger.warning("files were not swept")
        await asyncio.sleep(SWEEP_EVERY_S)


async def _on_client_left(request: Request, error: Exception) -> Response:  # noqa: ARG001
    deployment_of(request).metrics.disconnects.labels(request.scope["route"].path).inc()
    return Response(status_code=CLIENT_LEFT)
