"""Several workers of one kind, in processes of their own that are killed, stopped and started again."""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from replicated import Replicated, replicated, worker_processes
from scripted_workers import finish, group, image, text, user_message
from swallowing_proxy import swallowing_proxy

from orchestrator.breaker import Outcome
from orchestrator.replicas import Replica
from superlink.errors import from_rpc_error
from superlink.v1 import orchestrator_pb2

pytestmark = pytest.mark.faults


async def ask_often(deployment: Replicated, count: int, at_once: int = 8) -> list[int | str]:
    """Of ``count`` requests with a picture each: who answered, or the code of the error."""
    places = asyncio.Semaphore(at_once)

    async def ask(number: int) -> int | str:
        async with places:
            return await deployment.outcome(picture=b"picture %d" % number)

    return await asyncio.gather(*(ask(number) for number in range(count)))


async def test_every_replica_works() -> None:
    async with worker_processes(11, 12, 13) as workers, replicated([each.address for each in workers]) as deployment:
        answers = Counter(await ask_often(deployment, 90))
        state = await deployment.standing()

    assert set(answers) == {11, 12, 13}
    assert min(answers.values()) >= 15
    assert (state.ready, state.breaker, state.replicas, state.replicas_in_use) == (True, "closed", 3, 3)


async def test_the_same_picture_goes_to_the_same_replica_where_its_features_are() -> None:
    async with worker_processes(11, 12, 13) as workers, replicated([each.address for each in workers]) as deployment:
        answers = {picture: {await deployment.ask(picture=picture) for _ in range(4)} for picture in (b"a", b"b", b"c")}

    assert all(len(numbers) == 1 for numbers in answers.values())


async def test_a_slow_replica_gets_less_and_then_none_and_is_tried_again() -> None:
    async with (
        worker_processes(11, 12, 13, seconds=[0.01, 0.01, 0.3]) as workers,
        replicated([each.address for each in workers]) as deployment,
    ):
        early = Counter(await ask_often(deployment, 60))
        await ask_often(deployment, 300)
        async with asyncio.timeout(15):
            while (await deployment.standing()).replicas_in_use == 3:
                await ask_often(deployment, 20)
        late = Counter(await ask_often(deployment, 60))
        # Its breaker lets it show whether it has become faster.
        await deployment.until(replicas_in_use=3)

    assert early[13] < 15
    assert late[13] <= 3
    assert {type(each) for each in (*early, *late)} == {int}


async def test_nothing_fails_when_one_of_several_is_killed_and_it_works_again_within_two_seconds() -> None:
    async with worker_processes(11, 12, 13) as workers, replicated([each.address for each in workers]) as deployment:
        await ask_often(deployment, 20)
        asking = asyncio.create_task(ask_often(deployment, 150))
        await asyncio.sleep(0.15)
        await workers[1].kill()
        answers = await asking
        state = await deployment.until(replicas_in_use=2)
        await workers[1].start()
        returned = time.monotonic()
        await deployment.until(replicas_in_use=3)
        took_s = time.monotonic() - returned
        after = Counter(await ask_often(deployment, 60))

    assert {type(each) for each in answers} == {int}
    assert (state.ready, state.breaker, state.replicas) == (True, "closed", 3)
    assert took_s < 2
    assert set(after) == {11, 12, 13}


async def test_calls_of_a_replica_that_hangs_are_sent_to_another() -> None:
    async with worker_processes(11, 12) as workers, replicated([each.address for each in workers]) as deployment:
        await ask_often(deployment, 20)
        workers[0].send(signal.SIGSTOP)
        answers = await ask_often(deployment, 20, at_once=20)
        assert (await deployment.until(replicas_in_use=1)).ready
        workers[0].send(signal.SIGCONT)
        await deployment.until(replicas_in_use=2, within_s=2)
        after = await ask_often(deployment, 40)

    assert set(answers) == {12}
    assert set(after) == {11, 12}


async def test_rolling_restarts_lose_nothing() -> None:
    async with worker_processes(11, 12) as workers, replicated([each.address for each in workers]) as deployment:
        asking = asyncio.create_task(ask_often(deployment, 400, at_once=6))
        for worker in workers:
            await asyncio.sleep(0.3)
            worker.send(signal.SIGTERM)
            await asyncio.sleep(0.6)
            await worker.kill()
            await worker.start()
            await deployment.until(replicas_in_use=2)
        answers = await asking

    assert {type(each) for each in answers} == {int}


async def test_a_decoder_that_is_away_is_said_to_be_so_at_once_and_is_back_within_two_seconds() -> None:
    async with worker_processes(11) as [worker], replicated([worker.address]) as deployment:
        assert await deployment.ask() == 11
        await worker.kill()
        away = await deployment.until(replicas_in_use=0)
        links = len(deployment.mllm.link_requests)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await deployment.ask()
        took_s = time.monotonic() - began
        # Nothing was computed in vain.
        assert len(deployment.mllm.link_requests) == links
        await worker.start()
        returned = time.monotonic()
        await deployment.until(replicas_in_use=1)
        assert await ask_often(deployment, 30) == [11] * 30
        back_s = time.monotonic() - returned

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.service, error.retryable) == ("decoder_unavailable", "detection", True)
    assert error.hop == "orchestrator>detection"
    assert error.retry_after_ms >= 1000
    assert took_s < 0.2
    assert (away.ready, away.breaker) == (False, "open")
    assert back_s < 2


async def test_requests_that_break_a_worker_do_not_take_it_from_others() -> None:
    async with worker_processes(11) as [worker], replicated([worker.address]) as deployment:
        for _ in range(15):
            assert await deployment.outcome("poison") == "internal"
            assert await deployment.ask() == 11


async def test_poison_spares_half_of_the_replicas() -> None:
    async with worker_processes(11, 12) as workers, replicated([each.address for each in workers]) as deployment:
        codes = {await deployment.outcome("poison", picture=b"%d" % number) for number in range(40)}
        assert type(await deployment.ask()) is int

    assert codes == {"internal"}


class Names:
    """Resolves as a headless service does whose pods come and go."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.fails = False

    async def __call__(self, address: str) -> Sequence[str]:
        assert address == "detection.vision.svc:50052"
        if self.fails:
            raise OSError("no such name")
        return self.addresses


async def test_a_name_stands_for_all_that_it_resolves_to_now() -> None:
    async with worker_processes(11, 12, 13) as [first, second, third]:
        names = Names(first.address, second.address)
        async with replicated(["detection.vision.svc:50052"], resolve_address=names) as deployment:
            assert set(await ask_often(deployment, 40)) == {11, 12}
            names.addresses = (second.address, third.address)
            # Its death is a reason to ask for the name again.
            await first.kill()
            async with asyncio.timeout(10):
                while 13 not in await ask_often(deployment, 20):
                    pass
            assert set(await ask_often(deployment, 40)) == {12, 13}
            assert (await deployment.standing()).replicas == 2
            names.fails = True
            await asyncio.sleep(1)
            assert set(await ask_often(deployment, 40)) == {12, 13}


async def test_a_name_that_leads_nowhere_is_an_error_and_not_for_ever() -> None:
    async with worker_processes(11) as [worker]:
        names = Names()
        async with replicated(["detection.vision.svc:50052"], resolve_address=names) as deployment:
            assert await deployment.outcome() == "decoder_unavailable"
            names.addresses = (worker.address,)
            await deployment.until(replicas_in_use=1)
            assert await deployment.ask() == 11


async def test_a_real_name_is_resolved() -> None:
    async with worker_processes(11) as [worker]:
        port = worker.address.rpartition(":")[2]
        async with replicated([f"localhost:{port}"]) as deployment:
            assert await deployment.ask() == 11


@pytest.mark.parametrize("timeout_s", [1.0, 3.0])
async def test_deadlines_hold_when_the_network_swallows_everything(timeout_s: float) -> None:
    async with (
        worker_processes(11) as [worker],
        swallowing_proxy(worker.address) as proxy,
        replicated([proxy.address]) as deployment,
    ):
        assert await deployment.ask() == 11
        proxy.swallow()
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await deployment.ask(timeout_s=timeout_s)
        took_s = time.monotonic() - began
        proxy.pass_on()
        await deployment.until(replicas_in_use=1)
        assert await deployment.ask() == 11

    error = from_rpc_error(caught.value, "orchestrator")
    # The orchestrator said it, before the caller's own clock ran out.
    assert (error.code, error.service, error.hop) == ("deadline_exceeded", "detection", "orchestrator>detection")
    assert 0.8 * timeout_s < took_s < timeout_s


async def test_a_call_that_never_got_a_connection_says_so_when_its_time_is_up() -> None:
    async with worker_processes(11) as [worker], replicated([worker.address]) as deployment:
        assert await deployment.ask() == 11
        await worker.kill()
        host, _, port = worker.address.rpartition(":")
        # The port is taken by what accepts connections and says nothing.
        with socket.create_server((host, int(port))), pytest.raises(grpc.aio.AioRpcError) as caught:
            await deployment.ask(timeout_s=1)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.service) == ("decoder_unavailable", "detection")


async def test_an_answer_keeps_its_deadline_and_is_whole_when_its_tool_is_swallowed() -> None:
    async with (
        worker_processes(11) as [worker],
        swallowing_proxy(worker.address) as proxy,
        replicated([proxy.address]) as deployment,
    ):
        assert await deployment.ask() == 11
        proxy.swallow()
        deployment.mllm.rounds = [
            [text("dog"), group("dog", 0), finish(3)],
            [0.1, text("I could not look."), finish()],
        ]
        began = time.monotonic()
        request = orchestrator_pb2.AnswerRequest(messages=[user_message("Where is the dog?", image())])
        events = [event async for event in deployment.stub.Answer(request, timeout=2)]
        took_s = time.monotonic() - began

    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.index("tool_failure") < kinds.index("observation")
    assert "".join(event.text_delta.text for event in events) == "dog\nI could not look."
    assert kinds[-1] == "finish"
    assert took_s < 2


async def test_a_replica_with_all_the_calls_that_it_takes_is_not_away() -> None:
    server = grpc.aio.server(maximum_concurrent_rpcs=1)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    replica = Replica(address, health_pb2_grpc.HealthStub)
    try:
        call_in_hand = replica.stub.Watch(health_pb2.HealthCheckRequest())
        await call_in_hand.read()
        full = await replica.probe()
        await server.stop(0)
        away = await replica.probe()
    finally:
        await replica.channel.close(None)
        await server.stop(0)
    assert (full, away) == (Outcome.ANSWERED, Outcome.UNREACHABLE)
