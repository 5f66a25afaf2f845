"""What is sent again, what is not, and when."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from scripted_workers import (
    ScriptedDeployment,
    Step,
    find_one_object_a_group,
    finish,
    group,
    image,
    made_images,
    progress,
    scripted_deployment,
    text,
    user_message,
)

from superlink.channels import open_channel, server_options
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.profile import OrchestratorSettings
from superlink.v1 import decoder_pb2, orchestrator_pb2, orchestrator_pb2_grpc

pytestmark = pytest.mark.faults
Stub = orchestrator_pb2_grpc.OrchestratorStub


def away(retry_after_ms: int = 0) -> SuperlinkError:
    return SuperlinkError("not_ready", "Not yet.", status=grpc.StatusCode.UNAVAILABLE, retry_after_ms=retry_after_ms)


class FailsAtFirst:
    """A decoder's script: fails so many times, and then finds one object a group."""

    def __init__(self, error: SuperlinkError, times: int = 1) -> None:
        self._error = error
        self._left = times

    def __call__(self, request: decoder_pb2.DecodeRequest) -> list[Step]:
        self._left -= 1
        return [self._error] if self._left >= 0 else find_one_object_a_group(request)


async def detect(stub: Stub, timeout_s: float = 10) -> str:
    """``ok``, or the code of the error."""
    try:
        await stub.Detect(orchestrator_pb2.DetectRequest(phrases=["dog"], image=image()), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, "orchestrator").code
    return "ok"


async def test_a_call_that_met_no_working_worker_is_sent_again(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.script = FailsAtFirst(away(), times=2)
    assert await detect(orchestrator) == "ok"
    assert len(deployment.detection.requests) == 3


async def test_it_is_sent_again_after_the_delay_that_the_worker_named(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.script = FailsAtFirst(away(retry_after_ms=400))
    began = time.monotonic()
    assert await detect(orchestrator) == "ok"
    assert 0.4 <= time.monotonic() - began < 1


async def test_it_is_told_at_once_when_the_deadline_comes_before_that(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.script = FailsAtFirst(away(retry_after_ms=3000))
    began = time.monotonic()
    assert await detect(orchestrator, timeout_s=2) == "not_ready"
    assert time.monotonic() - began < 0.5
    assert len(deployment.detection.requests) == 1


async def test_attempts_have_an_end(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.script = FailsAtFirst(away(), times=100)
    assert await detect(orchestrator) == "not_ready"
    assert len(deployment.detection.requests) == 4


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("image_corrupt", grpc.StatusCode.INVALID_ARGUMENT),
        ("internal", grpc.StatusCode.INTERNAL),
        ("deadline_exceeded", grpc.StatusCode.DEADLINE_EXCEEDED),
        # There is no other replica whose queue might have room.
        ("queue_full", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_other_failures_are_told(
    deployment: ScriptedDeployment, orchestrator: Stub, code: str, status: grpc.StatusCode
) -> None:
    deployment.detection.script = FailsAtFirst(SuperlinkError(code, "No.", status=status))
    assert await detect(orchestrator) == code
    assert len(deployment.detection.requests) == 1


async def test_nothing_is_sent_again_after_its_first_event(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.diffusion.script = lambda request: [progress(1, 4), away()]
    request = orchestrator_pb2.DrawRequest(prompt="a cat")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in orchestrator.Draw(request, timeout=5):
            pass
    assert from_rpc_error(caught.value, "orchestrator").code == "not_ready"
    assert len(deployment.diffusion.requests) == 1

    tries: list[int] = []

    def fail_before_the_first(request: decoder_pb2.DecodeRequest) -> list[Step]:
        tries.append(1)
        return [away()] if len(tries) == 1 else [progress(1, 4), made_images(b"a cat")]

    deployment.diffusion.script = fail_before_the_first
    events = [event async for event in orchestrator.Draw(request, timeout=5)]
    assert events[-1].response.images.images[0].encoded == b"a cat"
    assert sum(event.HasField("progress") for event in events) == 1


async def test_an_answer_is_begun_again_before_its_first_word_and_never_after(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    request = orchestrator_pb2.AnswerRequest(messages=[user_message("Hello?")])
    plain = deployment.mllm.rounds
    deployment.mllm.rounds = [[away()]]

    async def mend() -> None:
        await deployment.mllm.started.wait()
        deployment.mllm.rounds = plain

    mending = asyncio.create_task(mend())
    events = [event async for event in orchestrator.Answer(request, timeout=5)]
    await mending
    assert "".join(event.text_delta.text for event in events) == "Nothing to say."

    deployment.mllm.generate_requests.clear()
    deployment.mllm.rounds = [[text("Well"), away()]]
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in orchestrator.Answer(request, timeout=5):
            pass
    assert len(deployment.mllm.generate_requests) == 1


async def test_images_sent_ahead_are_not_sent_twice(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.prefetch_error = away()
    deployment.mllm.rounds = [[0.4, text("dog"), group("dog", 0), finish()]]
    request = orchestrator_pb2.AnswerRequest(messages=[user_message("?", image())])
    async for _ in orchestrator.Answer(request, timeout=5):
        pass
    assert len(deployment.detection.prefetches) == 1
    assert len(deployment.detection.requests) == 1


@asynccontextmanager
async def with_share(retry_share: float) -> AsyncIterator[tuple[ScriptedDeployment, Stub]]:
    settings = OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=1, prefetch=False, retry_share=retry_share)
    async with scripted_deployment(settings) as running, open_channel(running.orchestrator.address) as channel:
        yield running, Stub(channel)


async def test_repetitions_can_be_turned_off() -> None:
    async with with_share(0) as (deployment, orchestrator):
        deployment.detection.script = FailsAtFirst(away())
        assert await detect(orchestrator) == "not_ready"
        assert len(deployment.detection.requests) == 1


async def test_repetitions_are_a_share_of_the_calls() -> None:
    async with with_share(0.1) as (deployment, orchestrator):
        # Too few to open the breaker.
        calls = 0

        def fail_often(request: decoder_pb2.DecodeRequest) -> list[Step]:
            nonlocal calls
            calls += 1
            return [away()] if calls % 3 == 0 else find_one_object_a_group(request)

        deployment.detection.script = fail_often
        outcomes = [await detect(orchestrator) for _ in range(90)]

    repeated = len(deployment.detection.requests) - 90
    # Ten in reserve, and nine for ninety calls.
    assert 15 <= repeated <= 19
    assert outcomes.count("not_ready") > 0


async def test_connections_that_grow_old_lose_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_lived() -> list[tuple[str, object]]:
        ages = {"grpc.max_connection_age_ms": 300, "grpc.max_connection_age_grace_ms": 5000}
        return [*((key, value) for key, value in server_options() if key not in ages), *ages.items()]

    monkeypatch.setattr("superlink.serving.server_options", short_lived)
    async with with_share(0.1) as (deployment, orchestrator):
        deployment.detection.script = lambda request: [0.02, *find_one_object_a_group(request)]
        ends = time.monotonic() + 4
        outcomes: list[str] = []

        async def ask() -> None:
            while time.monotonic() < ends:
                outcomes.append(await detect(orchestrator))

        await asyncio.gather(*(ask() for _ in range(4)))

    assert len(outcomes) > 100
    assert set(outcomes) == {"ok"}
