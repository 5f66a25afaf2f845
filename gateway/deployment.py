"""What every handler needs: the profile, the orchestrator, the stores and the metrics of this application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fastapi import Request
from redis.asyncio import Redis

from gateway.image_urls import ImageFetcher
from gateway.metrics import Metrics
from gateway.orchestrator_client import OrchestratorClient
from gateway.storage_threads import StorageThreads
from superlink.artifacts import ArtifactStore
from superlink.batch_store import BatchStore
from superlink.profile import Profile


@dataclass
class Startup:
    """Whether this process has started; nothing undoes it."""

    is_over: bool = False


@dataclass(frozen=True)
class Deployment:
    """Made in the application's lifespan, because channels belong to the running loop."""

    profile: Profile
    orchestrator: OrchestratorClient
    metrics: Metrics
    fetcher: ImageFetcher
    artifacts: ArtifactStore
    batches: BatchStore
    # None: the deployment has none, and needs none.
    redis: Redis | None
    # In which the calls of both stores are made.
    storage: StorageThreads = field(default_factory=StorageThreads)
    startup: Startup = field(default_factory=Startup)
    # Of pictures that are drawn at the same time; each may take a quarter of a gigabyte while it is.
    drawing_places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))


def deployment_of(request: Request) -> Deployment:
    """The deployment that answers ``request``."""
    deployment = request.app.state.deployment
    assert isinstance(deployment, Deployment)  # noqa: S101
    return deployment
