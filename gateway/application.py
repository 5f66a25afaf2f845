"""The FastAPI application of a profile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.responses import Response

from gateway import chat, detect, drawing, probes
from gateway.deployment import Deployment, deployment_of
from gateway.disconnects import ClientLeft
from gateway.documentation import document_extra_models
from gateway.metrics import Metrics
from gateway.middleware import CLIENT_LEFT, BodyLimit, RequestMiddleware
from gateway.orchestrator_client import OrchestratorClient
from gateway.problems import add_problem_handlers
from superlink.channels import open_channel
from superlink.profile import Profile

DESCRIPTION = """Ask about images. The model answers in text and calls vision tools for what the answer needs; what the
tools find is tied to the words that asked for it. All failures are problem documents (RFC 9457)."""


def create_application(profile: Profile) -> FastAPI:
    """An application that talks to the orchestrator of ``profile``; the channel is opened when it starts."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with open_channel(profile.orchestrator.address) as channel:
            application.state.deployment = Deployment(profile, OrchestratorClient(channel), metrics)
            yield

    application = FastAPI(
        title="Superlink",
        version="1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    # The one added last is the outermost.
    application.add_middleware(BodyLimit, max_body_bytes=profile.gateway.max_body_bytes)
    application.add_middleware(RequestMiddleware, metrics=metrics)
    add_problem_handlers(application)
    application.add_exception_handler(ClientLeft, _on_client_left)
    for room in (chat, detect, drawing, probes):
        application.include_router(room.router)
    document_extra_models(application)
    return application


async def _on_client_left(request: Request, error: Exception) -> Response:  # noqa: ARG001
    deployment_of(request).metrics.disconnects.labels(request.scope["route"].path).inc()
    return Response(status_code=CLIENT_LEFT)
