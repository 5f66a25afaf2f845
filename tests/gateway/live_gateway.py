"""A gateway on a real socket, in front of an orchestrator and scripted workers."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx
import uvicorn
from scripted_workers import ScriptedDeployment, scripted_deployment

from gateway.application import create_application
from gateway.server import bind, configuration_of
from superlink.profile import ArtifactSettings, BatchSettings, GatewaySettings, OrchestratorSettings
from superlink.public_hosts import Resolver


class QuietServer(uvicorn.Server):
    """Leaves the signals of the test process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class LiveGateway:
    workers: ScriptedDeployment
    url: str
    http: httpx.AsyncClient
    server: uvicorn.Server


@contextlib.asynccontextmanager
async def live_gateway(
    drain_timeout_s: int = 2,
    without: Collection[str] = (),
    resolve: Resolver | None = None,
    artifacts: Mapping[str, Any] = MappingProxyType({}),
    batches: Mapping[str, Any] = MappingProxyType({}),
    orchestrator: OrchestratorSettings | None = None,
    **other_settings: Any,
) -> AsyncIterator[LiveGateway]:
    """``without``: decoders that the profile leaves out; ``resolve`` looks up the hosts of images; ``artifacts`` are
    settings of the store of files, ``batches`` those of batches, and ``other_settings`` those of the gateway."""
    small: dict[str, Any] = {"request_timeout_s": 5, "max_prompt_characters": 500, "max_phrases": 10}
    settings = GatewaySettings(port=1, **(small | other_settings))
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(scripted_deployment(orchestrator, settings, without))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        kept = ArtifactSettings.model_validate({"url": folder, **artifacts})
        worked_on = BatchSettings.model_validate(dict(batches))
        workers.profile = workers.profile.model_copy(update={"artifacts": kept, "batches": worked_on})
        listener = bind(settings.model_copy(update={"port": 0}))
        server = QuietServer(configuration_of(create_application(workers.profile, resolve), drain_timeout_s))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            yield LiveGateway(workers, url, http, server)
        server.should_exit = True
        await serving
