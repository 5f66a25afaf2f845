"""An orchestrator in front of detection workers that are processes of their own."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from scripted_workers import ScriptedMllm, image, start

from orchestrator.addresses import Resolve, resolve
from orchestrator.server import running_orchestrator
from superlink.channels import open_channel
from superlink.errors import from_rpc_error
from superlink.profile import MllmSettings, OrchestratorSettings, Profile, WorkerSettings
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub
PROGRAM = Path(__file__).with_name("worker_process.py")
REPOSITORY = PROGRAM.parents[2]


class WorkerProcess:
    """One worker that can be killed, stopped, and started again where it was."""

    def __init__(self, number: int, seconds: float) -> None:
        self.number = number
        self._seconds = seconds
        self.address = "127.0.0.1:0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = [sys.executable, str(PROGRAM), str(self.number), self.address.rpartition(":")[2], str(self._seconds)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GRPC_VERBOSITY": "NONE"}
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self._process.stdout is not None
        self.address = (await self._process.stdout.readline()).decode().strip()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def worker_processes(*numbers: int, seconds: Sequence[float] = ()) -> AsyncIterator[list[WorkerProcess]]:
    """``seconds``: what a request takes at each; by default a hundredth."""
    times = seconds or [0.01] * len(numbers)
    workers = [WorkerProcess(number, each) for number, each in zip(numbers, times, strict=True)]
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        yield workers
    finally:
        for worker in workers:
            await worker.kill()


@dataclass
class Replicated:
    """The orchestrator and what is in this process with it."""

    stub: Stub
    mllm: ScriptedMllm

    async def ask(self, phrase: str = "dog", timeout_s: float = 10, picture: bytes = b"a picture") -> int:
        """The number of the worker that looked for ``phrase``. Raises AioRpcError."""
        request = orchestrator_pb2.DetectRequest(phrases=[phrase], image=image(picture))
        response = await self.stub.Detect(request, timeout=timeout_s)
        return round(100 * response.detections.detections[0].score)

    async def outcome(self, phrase: str = "dog", timeout_s: float = 10, picture: bytes = b"a picture") -> int | str:
        """As ``ask``, or the code of its error."""
        try:
            return await self.ask(phrase, timeout_s, picture)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error, "orchestrator").code

    async def standing(self) -> orchestrator_pb2.ServiceState:
        """What is known of the detection workers."""
        description = await self.stub.Describe(orchestrator_pb2.DescribeOrchestratorRequest(), timeout=10)
        return next(state for state in description.services if state.name == "detection")

    async def until(self, replicas_in_use: int, within_s: float = 10) -> orchestrator_pb2.ServiceState:
        """Wait until so many of the detection workers get calls."""
        async with asyncio.timeout(within_s):
            while True:
                state = await self.standing()
                if state.replicas_in_use == replicas_in_use:
                    return state
                await asyncio.sleep(0.05)


@asynccontextmanager
async def replicated(
    addresses: Sequence[str],
    settings: OrchestratorSettings | None = None,
    resolve_address: Resolve = resolve,
) -> AsyncIterator[Replicated]:
    """``addresses``: where the profile says that the detection workers are."""
    mllm = ScriptedMllm()
    nowhere = Path("unused")
    async with AsyncExitStack() as stack:
        server = await start(mllm, "mllm", stack)
        profile = Profile(
            name="replicated",
            orchestrator=settings or OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=1, prefetch=False),
            mllm=MllmSettings(address=server.address, weights=nowhere),
            decoders={"detection": WorkerSettings(address="127.0.0.1:1", replicas=tuple(addresses), weights=nowhere)},
        )
        orchestrator = await stack.enter_async_context(running_orchestrator(profile, resolve_address))
        # No repetitions of the test's own.
        channel = await stack.enter_async_context(open_channel(orchestrator.address, [("grpc.enable_retries", 0)]))
        yield Replicated(Stub(channel), mllm)
