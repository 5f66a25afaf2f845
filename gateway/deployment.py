"""What every handler needs: the profile, the orchestrator, the stores and the metrics of this application."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from redis.asyncio import Redis

from gateway.image_urls import ImageFetcher
from gateway.metrics import Metrics
from gateway.orchestrator_client import OrchestratorClient
from superlink.profile import Profile


@dataclass(frozen=True)
class Deployment:
    """Made in the application's lifespan, because channels belong to the running loop."""

    profile: Profile
    orchestrator: OrchestratorClient
    metrics: Metrics
    fetcher: ImageFetcher
    # None: the deployment has none, and needs none.
    redis: Redis | None


def deployment_of(request: Request) -> Deployment:
    """The deployment that answers ``request``."""
    deployment = request.app.state.deployment
    assert isinstance(deployment, Deployment)  # noqa: S101
    return deployment
