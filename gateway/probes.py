"""Probes, metrics and the list of models. No probe does any model work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import grpc
from fastapi import APIRouter, Path, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from redis.asyncio import Redis
from starlette.responses import JSONResponse, Response

from gateway import examples
from gateway.deployment import Deployment, deployment_of
from gateway.documentation import example_response, metrics_documentation, problem_response, problem_responses
from gateway.problems import SERVICE, Problem, ProblemResponse, request_id_of
from gateway.results import bones_of
from superlink.batch_workers import count_workers
from superlink.errors import SuperlinkError
from superlink.redis_connection import redis_failures
from superlink.v1 import orchestrator_pb2

router = APIRouter()

# What the gateway itself asks; the rest is behind the orchestrator.
OWN_SERVICES = ("orchestrator", "redis")
READINESS_KEY, READINESS_KEPT_MS = "superlink:readiness", 10_000
BreakerState = Literal["closed", "half_open", "open"]
_BREAKERS: dict[str, BreakerState] = {"closed": "closed", "half_open": "half_open", "open": "open"}


class Alive(BaseModel):
    """The process runs."""

    status: Literal["alive"] = "alive"


class Started(BaseModel):
    """The process has started."""

    status: Literal["started"] = "started"


class ServiceReadiness(BaseModel):
    """One service of the deployment."""

    name: str
    ready: bool
    reason: str | None = None
    breaker: BreakerState | None = Field(
        default=None, description="Of the model and the tools: whether calls are sent to any of its replicas."
    )
    replicas: int | None = Field(default=None, description="Of the model and the tools: those that are known.")
    replicas_in_use: int | None = Field(default=None, description="Those of them that get calls.")


class Ready(BaseModel):
    """Every service can take requests."""

    status: Literal["ready"] = "ready"
    services: list[ServiceReadiness]


class KnownSkeleton(BaseModel):
    """A kind of thing whose keypoints a tool knows."""

    names: list[str] = Field(examples=[["person", "people"]])
    keypoints: list[str]
    bones: list[tuple[str, str]] = Field(description="Pairs of keypoints between which a line is drawn.")


class Tool(BaseModel):
    """A decoder of the deployment."""

    name: str
    version: str
    routes: list[str]
    max_groups: int
    ready: bool = Field(description="Whether it can be asked now.")
    skeletons: list[KnownSkeleton] = Field(
        default=[], exclude_if=lambda skeletons: not skeletons, description="Of tools that find poses."
    )


class ModelExtension(BaseModel):
    """What the model can do."""

    version: str
    max_tokens: int
    max_images: int
    tools: list[Tool]


class Model(BaseModel):
    """A served model, in OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "superlink"
    superlink: ModelExtension


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/livez", summary="Is the process alive?", responses=example_response(examples.ALIVE))
@router.get("/healthz", name="healthz", summary="As /livez", responses=example_response(examples.ALIVE))
async def live() -> Alive:
    """Says nothing about the services behind it; that is /readyz."""
    return Alive()


@router.get(
    "/readyz",
    response_model=Ready,
    summary="Can the deployment take requests?",
    responses={**example_response(examples.READY), 503: problem_response("not_ready")},
)
async def ready(request: Request) -> Response:
    """200 when every service is ready, else 503 naming those that are not."""
    try:
        description = await deployment_of(request).orchestrator.describe()
    except SuperlinkError as error:
        return _not_ready(request, [ServiceReadiness(name="orchestrator", ready=False, reason=error.message)])
    services = [ServiceReadiness(name="orchestrator", ready=True)]
    services += [
        ServiceReadiness(
            name=state.name,
            ready=state.ready,
            reason=state.reason or None,
            breaker=_BREAKERS.get(state.breaker),
            replicas=state.replicas,
            replicas_in_use=state.replicas_in_use,
        )
        for state in description.services
    ]
    redis = deployment_of(request).redis
    if redis is not None:
        services.append(await _readiness_of_redis(redis))
    is_ready = all(service.ready for service in services)
    if redis is not None and deployment_of(request).profile.batches.enabled:
        # Live requests need nobody who works on batches: this is for people, and for `superlink status`.
        services.append(await _readiness_of_batches(redis))
    if not is_ready:
        return _not_ready(request, services)
    return JSONResponse(Ready(services=services).model_dump(exclude_none=True))


@router.get(
    "/startupz",
    response_model=Started,
    summary="Has the process started?",
    responses={**example_response(examples.STARTED), 503: problem_response("not_ready")},
)
async def startup(request: Request) -> Response:
    """200 once all that the gateway itself asks has answered once, whatever becomes of it later; that is /readyz."""
    deployment = deployment_of(request)
    if not deployment.startup.is_over:
        services = await _own_services(deployment)
        if not all(service.ready for service in services):
            return _not_ready(request, services)
        deployment.startup.is_over = True
    return JSONResponse(Started().model_dump())


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, **metrics_documentation())
async def metrics(request: Request) -> Response:
    """Of this gateway; the orchestrator and the workers serve their own."""
    return Response(
        generate_latest(deployment_of(request).metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST}
    )


@router.get(
    "/v1/models",
    summary="List models",
    responses={**problem_responses(503, 504), **example_response(examples.MODEL_LIST)},
)
async def list_models(request: Request) -> ModelList:
    """The model of this deployment with its tools."""
    return ModelList(data=[await _model(request)])


@router.get(
    "/v1/models/{model}",
    summary="One model",
    responses={**problem_responses(404, 503, 504), **example_response(examples.MODEL)},
)
async def get_model(request: Request, model: Annotated[str, Path(examples=["superlink-tiny"])]) -> Model:
    """404 for every other name than the served one."""
    await deployment_of(request).orchestrator.served_model(model)
    return await _model(request)


async def _model(request: Request) -> Model:
    orchestrator = deployment_of(request).orchestrator
    name = await orchestrator.served_model(None)
    description = await orchestrator.describe()
    return Model(id=name, superlink=_extension(description))


def _extension(description: orchestrator_pb2.DescribeOrchestratorResponse) -> ModelExtension:
    return ModelExtension(
        version=description.mllm.version,
        max_tokens=description.mllm.max_tokens,
        max_images=description.mllm.max_images,
        tools=[
            Tool(
                name=decoder.name,
                version=decoder.version,
                routes=list(decoder.routes),
                max_groups=decoder.max_groups,
                ready=any(state.name == decoder.name and state.ready for state in description.services),
                skeletons=[
                    KnownSkeleton(names=list(each.names), keypoints=list(each.keypoints), bones=bones_of(each))
                    for each in decoder.skeletons
                ],
            )
            for decoder in description.decoders
        ],
    )


async def _own_services(deployment: Deployment) -> list[ServiceReadiness]:
    """What the gateway asks without anybody between them."""
    try:
        await deployment.orchestrator.describe()
    except SuperlinkError as error:
        orchestrator = ServiceReadiness(name="orchestrator", ready=False, reason=error.message)
    else:
        orchestrator = ServiceReadiness(name="orchestrator", ready=True)
    redis = [await _readiness_of_redis(deployment.redis)] if deployment.redis is not None else []
    return [orchestrator, *redis]


async def _readiness_of_redis(redis: Redis) -> ServiceReadiness:
    try:
        with redis_failures():
            # One that is full answers a ping, and takes nothing.
            await redis.set(READINESS_KEY, b"", px=READINESS_KEPT_MS)
    except SuperlinkError as error:
        return ServiceReadiness(name="redis", ready=False, reason=error.message)
    return ServiceReadiness(name="redis", ready=True)


async def _readiness_of_batches(redis: Redis) -> ServiceReadiness:
    try:
        working = await count_workers(redis)
    except SuperlinkError as error:
        return ServiceReadiness(name="batches", ready=False, reason=error.message)
    reason = None if working else "No worker takes steps of batches."
    return ServiceReadiness(name="batches", ready=bool(working), reason=reason)


def _not_ready(request: Request, services: list[ServiceReadiness]) -> ProblemResponse:
    away = [service for service in services if not service.ready]
    sentences = " ".join(f"{service.name} is not ready: {service.reason}" for service in away)
    name = away[0].name
    error = SuperlinkError(
        "not_ready",
        sentences,
        status=grpc.StatusCode.UNAVAILABLE,
        service=name,
        retry_after_ms=1000,
        hop=f"{SERVICE}>{name}" if name in OWN_SERVICES else f"orchestrator>{name}",
    )
    extensions: dict[str, Any] = {"services": [service.model_dump(exclude_none=True) for service in services]}
    return ProblemResponse(Problem.from_error(error, request_id_of(request)), extensions)
