import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from superlink.channels import (
    CLIENT_PING_INTERVAL_MS,
    MAX_MESSAGE_BYTES,
    SERVER_MIN_PING_INTERVAL_MS,
    open_channel,
    request_id_of,
)
from superlink.configuration import ConfigurationError
from superlink.errors import from_rpc_error
from superlink.logs import current_request_id
from superlink.serving import GrpcServer, deadline_of
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class SlowDecoder(decoder_pb2_grpc.DecoderServicer):
    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.deadline = 0.0
        self.request_id = ""
        self.logged_id = ""

    async def Describe(self, request, context):  # noqa: N802
        self.deadline = deadline_of(context)
        self.request_id = request_id_of(context, "")
        self.logged_id = current_request_id.get()
        return decoder_pb2.DescribeResponse(name="slow")

    async def Decode(self, request, context):  # noqa: N802
        self.started.set()
        yield decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=1, total=2))
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=2, total=2))


def make_server(servicer: SlowDecoder, address: str = "127.0.0.1:0", drain_timeout_s: float = 5) -> GrpcServer:
    server = GrpcServer("slow", address, drain_timeout_s=drain_timeout_s, setting="decoders.slow.address")
    server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, servicer, "superlink.v1.Decoder")
    return server


@pytest.fixture
async def slow() -> AsyncIterator[tuple[SlowDecoder, GrpcServer, grpc.aio.Channel]]:
    servicer = SlowDecoder()
    server = make_server(servicer)
    await server.start()
    async with open_channel(server.address) as channel:
        yield servicer, server, channel
    await server.stop()


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def decode(channel: grpc.aio.Channel) -> int:
    return len([event async for event in decoder_pb2_grpc.DecoderStub(channel).Decode(decoder_pb2.DecodeRequest())])


async def calls_in_flight(server: GrpcServer, expected: int) -> None:
    async with asyncio.timeout(5):
        while server.calls_in_flight != expected:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


async def test_nothing_is_served_before_the_server_is_ready(slow) -> None:
    _, server, channel = slow
    assert await health_of(channel) == NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        await decoder_pb2_grpc.DecoderStub(channel).Describe(decoder_pb2.DescribeRequest())
    error = from_rpc_error(caught.value, "slow")
    assert (error.code, error.status, error.retry_after_ms) == ("not_ready", grpc.StatusCode.UNAVAILABLE, 500)
    await server.set_ready(True)
    assert await health_of(channel) == await health_of(channel, "superlink.v1.Decoder") == SERVING
    assert (await decoder_pb2_grpc.DecoderStub(channel).Describe(decoder_pb2.DescribeRequest())).name == "slow"


async def test_request_id_and_deadline_reach_the_handler(slow) -> None:
    servicer, server, channel = slow
    await server.set_ready(True)
    stub = decoder_pb2_grpc.DecoderStub(channel)
    # On the wire gRPC rounds a timeout of seconds up by as much as ten milliseconds.
    await stub.Describe(decoder_pb2.DescribeRequest(), metadata=(("x-request-id", "abc"),), timeout=8.99)
    assert servicer.request_id == servicer.logged_id == "abc"
    assert 8 < servicer.deadline - time.monotonic() <= 9
    await stub.Describe(decoder_pb2.DescribeRequest())
    assert servicer.deadline == float("inf")
    assert len(servicer.request_id) == 32


async def test_reflection_names_the_services(slow) -> None:
    _, server, _ = slow

    def services() -> set[str]:
        with grpc.insecure_channel(server.address) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert {"superlink.v1.Decoder", "grpc.health.v1.Health"} <= await asyncio.to_thread(services)


async def test_too_large_a_message_is_named(slow) -> None:
    _, server, channel = slow
    await server.set_ready(True)
    request = decoder_pb2.DecodeRequest(image=types_pb2.Image(encoded=bytes(MAX_MESSAGE_BYTES)))
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in decoder_pb2_grpc.DecoderStub(channel).Decode(request):
            pass
    error = from_rpc_error(caught.value, "slow")
    assert (error.code, error.http_status, error.retryable) == ("message_too_large", 413, False)
    assert str(MAX_MESSAGE_BYTES) in error.message


async def test_calls_in_flight_finish_while_health_watchers_hang_on(slow) -> None:
    servicer, server, channel = slow
    await server.set_ready(True)
    statuses: list[int] = []

    async def watch() -> None:
        async for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            statuses.append(response.status)

    watching = asyncio.create_task(watch())
    running = [asyncio.create_task(decode(channel)) for _ in range(4)]
    await servicer.started.wait()
    await calls_in_flight(server, 4)
    draining = asyncio.create_task(server.drain())
    await asyncio.sleep(0.2)
    assert not draining.done()
    servicer.release.set()
    assert await asyncio.gather(*running) == [2, 2, 2, 2]
    # Far sooner than the drain time, which the watcher alone would use up.
    assert await asyncio.wait_for(draining, 2)
    with pytest.raises(grpc.RpcError):
        await watching
    assert statuses == [SERVING, NOT_SERVING]


async def test_drain_cuts_off_what_does_not_end_in_time() -> None:
    servicer = SlowDecoder()
    server = make_server(servicer, drain_timeout_s=0.2)
    await server.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        running = asyncio.create_task(decode(channel))
        await servicer.started.wait()
        assert await server.drain() is False
        with pytest.raises(grpc.RpcError):
            await running
    await asyncio.wait_for(servicer.cancelled.wait(), 1)


async def test_client_that_leaves_cancels_its_handler(slow) -> None:
    servicer, server, channel = slow
    await server.set_ready(True)
    running = asyncio.create_task(decode(channel))
    await servicer.started.wait()
    running.cancel()
    await asyncio.wait_for(servicer.cancelled.wait(), 1)
    await calls_in_flight(server, 0)


async def test_port_in_use_is_named_with_what_to_do(slow) -> None:
    _, server, _ = slow
    port = server.address.rpartition(":")[2]
    with pytest.raises(ConfigurationError, match=rf"port {port} on 127.0.0.1 is in use.*decoders.slow.address"):
        await make_server(SlowDecoder(), server.address).start()


async def test_address_that_cannot_be_had_is_named() -> None:
    with pytest.raises(ConfigurationError, match="unknown host 'no-such-host.invalid'"):
        await make_server(SlowDecoder(), "no-such-host.invalid:5000").start()
    with pytest.raises(ConfigurationError, match="cannot listen on 192.0.2.1:5000"):
        await make_server(SlowDecoder(), "192.0.2.1:5000").start()


async def test_calls_go_to_the_server_that_came_back() -> None:
    servicer = SlowDecoder()
    first = make_server(servicer)
    await first.start()
    await first.set_ready(True)
    async with open_channel(first.address) as channel:
        stub = decoder_pb2_grpc.DecoderStub(channel)
        await stub.Describe(decoder_pb2.DescribeRequest())
        await first.stop()
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Describe(decoder_pb2.DescribeRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        second = make_server(servicer, first.address)
        await second.start()
        await second.set_ready(True)
        began = time.monotonic()
        await stub.Describe(decoder_pb2.DescribeRequest(), timeout=5, wait_for_ready=True)
        assert time.monotonic() - began < 2
        await second.stop()


async def test_a_client_may_ping_as_often_as_the_clients_of_this_platform_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SERVER_MIN_PING_INTERVAL_MS < CLIENT_PING_INTERVAL_MS
    # Ten pings would take a minute and a half.
    monkeypatch.setattr("superlink.channels.SERVER_MIN_PING_INTERVAL_MS", 50)
    server = make_server(SlowDecoder())
    await server.start()
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    settings, ping, goaway = 4, 6, 7
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, settings, 0, 0, 0, 0, 0)))
    for _ in range(10):
        writer.write(bytes((0, 0, 8, ping, 0, 0, 0, 0, 0, *range(8))))
        await asyncio.sleep(0.1)
    kinds = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while header := await reader.read(9):
                kinds.append(header[3])
                await reader.readexactly(int.from_bytes(header[:3]))
    writer.close()
    await server.stop()
    assert kinds.count(ping) == 10
    assert goaway not in kinds


async def test_a_server_takes_so_many_calls_and_refuses_the_others_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlink.serving.MOST_CALLS", 3)
    servicer = SlowDecoder()
    server = make_server(servicer)
    await server.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        running = [asyncio.create_task(decode(channel)) for _ in range(3)]
        await calls_in_flight(server, 3)
        with pytest.raises(grpc.RpcError) as caught:
            await decode(channel)
        servicer.release.set()
        assert await asyncio.gather(*running) == [2, 2, 2]
        assert await decode(channel) == 2
    await server.stop()
    error = from_rpc_error(caught.value, "slow")
    assert (error.code, error.http_status, error.retryable) == ("overloaded", 429, True)
    assert error.retry_after_s == 1
