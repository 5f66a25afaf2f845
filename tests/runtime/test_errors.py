import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superlink.channels import request_metadata
from superlink.errors import (
    GRPC_STATUS,
    HTTP_STATUS,
    HTTP_STATUS_BY_CODE,
    SuperlinkError,
    from_rpc_error,
    status_for_http,
    to_rpc_status,
)
from superlink.serving import GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

FAILURES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]

errors = st.builds(
    SuperlinkError,
    st.from_regex(r"[a-z]{3,12}_[a-z]{3,12}", fullmatch=True),
    st.text(min_size=1, max_size=100),
    status=st.sampled_from(FAILURES),
    service=st.sampled_from(["gateway", "orchestrator", "mllm", "detection"]),
    retryable=st.booleans(),
    retry_after_ms=st.integers(0, 100_000),
    request_id=st.text("0123456789abcdef", max_size=32),
    hop=st.sampled_from(["", "orchestrator>detection"]),
)


def fields(error: SuperlinkError) -> dict[str, object]:
    return dict(vars(error))


@settings(max_examples=100, deadline=None)
@given(errors)
def test_message_round_trip(error: SuperlinkError) -> None:
    message = types_pb2.Error.FromString(error.to_message().SerializeToString())
    assert fields(SuperlinkError.from_message(message)) == fields(error)


def test_every_status_has_an_http_status_and_a_way_back() -> None:
    assert set(HTTP_STATUS) == set(grpc.StatusCode)
    for status, http_status in HTTP_STATUS.items():
        if status is not grpc.StatusCode.OK:
            assert HTTP_STATUS[status_for_http(http_status)] == http_status
    assert set(HTTP_STATUS_BY_CODE.values()) <= set(GRPC_STATUS)
    assert status_for_http(418) is grpc.StatusCode.UNKNOWN


def test_what_may_be_retried_follows_the_status() -> None:
    assert SuperlinkError("a", "b", status=grpc.StatusCode.UNAVAILABLE).retryable
    assert not SuperlinkError("a", "b", status=grpc.StatusCode.INVALID_ARGUMENT).retryable
    assert not SuperlinkError("a", "b", status=grpc.StatusCode.UNAVAILABLE, retryable=False).retryable


def test_details_stay_below_the_limit_of_trailers() -> None:
    error = SuperlinkError("too_long", "语" * 10_000, status=grpc.StatusCode.INTERNAL)
    assert len(to_rpc_status(error).SerializeToString()) < 1500


class Failing(decoder_pb2_grpc.DecoderServicer):
    """Raises what it is told to, from a unary and from a streaming method."""

    def __init__(self) -> None:
        self.error: Exception = ValueError()

    async def Describe(self, request, context):  # noqa: N802
        raise self.error

    async def Decode(self, request, context):  # noqa: N802
        yield decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=1, total=2))
        raise self.error


@pytest.fixture
async def failing():
    servicer = Failing()
    server = GrpcServer("detection", "127.0.0.1:0", drain_timeout_s=1)
    server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, servicer, "superlink.v1.Decoder")
    await server.start()
    await server.set_ready(True)
    # Without retries, so that UNAVAILABLE is seen as it was sent.
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield servicer, decoder_pb2_grpc.DecoderStub(channel)
    await server.stop()


async def call(stub, method: str, request_id: str) -> None:
    if method == "Describe":
        await stub.Describe(decoder_pb2.DescribeRequest(), metadata=request_metadata(request_id))
    else:
        async for _ in stub.Decode(decoder_pb2.DecodeRequest(request_id=request_id)):
            pass


async def caught_from(stub, method: str, request_id: str = "r-1") -> SuperlinkError:
    with pytest.raises(grpc.RpcError) as caught:
        await call(stub, method, request_id)
    return from_rpc_error(caught.value, "somebody")


@pytest.mark.parametrize("method", ["Describe", "Decode"])
@pytest.mark.parametrize("status", FAILURES)
async def test_errors_cross_a_real_connection_whole(failing, method: str, status: grpc.StatusCode) -> None:
    servicer, stub = failing
    servicer.error = SuperlinkError(
        "image_odd", "Das Bild ist schräg. 图像。", status=status, retryable=True, retry_after_ms=1234
    )
    error = await caught_from(stub, method)
    assert fields(error) == fields(servicer.error) | {"service": "detection", "request_id": "r-1"}


@pytest.mark.parametrize("method", ["Describe", "Decode"])
async def test_long_errors_arrive_shortened(failing, method: str) -> None:
    servicer, stub = failing
    servicer.error = SuperlinkError("long", "语" * 10_000, status=grpc.StatusCode.INVALID_ARGUMENT)
    error = await caught_from(stub, method)
    assert error.code == "long"
    assert error.message.endswith("语…")


async def test_error_of_a_deeper_hop_keeps_its_service_and_its_hop(failing) -> None:
    servicer, stub = failing
    servicer.error = SuperlinkError("x_y", "z", status=grpc.StatusCode.ABORTED, service="mllm")
    error = await caught_from(stub, "Describe")
    # Whoever passes another one's failure on says in which of its calls it came.
    assert (error.service, error.hop) == ("mllm", "detection>mllm")
    servicer.error = SuperlinkError("x_y", "z", status=grpc.StatusCode.ABORTED, service="pose", hop="mllm>pose")
    error = await caught_from(stub, "Describe")
    assert (error.service, error.hop) == ("pose", "mllm>pose")


async def test_an_error_of_a_service_itself_has_no_hop_until_it_is_passed_on(failing) -> None:
    servicer, stub = failing
    servicer.error = SuperlinkError("x_y", "z", status=grpc.StatusCode.ABORTED)
    error = await caught_from(stub, "Describe")
    assert (error.service, error.hop) == ("detection", "")
    assert error.passed_on_by("detection").hop == ""
    assert error.passed_on_by("orchestrator").hop == "orchestrator>detection"
    assert error.passed_on_by("gateway").hop == "orchestrator>detection"


async def test_a_status_that_no_service_of_ours_gives_is_a_defect() -> None:
    class Bare(decoder_pb2_grpc.DecoderServicer):
        async def Describe(self, request, context):  # noqa: N802
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "odd")

    server = grpc.aio.server()
    decoder_pb2_grpc.add_DecoderServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = decoder_pb2_grpc.DecoderStub(channel)
        codes = [(await caught_from(stub, method)).code for method in ("Describe", "Decode")]
    await server.stop(None)
    assert codes == ["internal", "unimplemented"]


@pytest.mark.parametrize("method", ["Describe", "Decode"])
async def test_bugs_are_logged_and_not_shown(failing, method: str, caplog) -> None:
    servicer, stub = failing
    servicer.error = ValueError("secret path /etc/x")
    error = await caught_from(stub, method, "r-77")
    assert (error.code, error.status, error.service) == ("internal", grpc.StatusCode.INTERNAL, "detection")
    assert "secret" not in error.message
    assert "r-77" in error.message
    assert "secret path" in caplog.text


async def test_failure_without_details_is_named_after_its_status() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await decoder_pb2_grpc.DecoderStub(channel).Describe(decoder_pb2.DescribeRequest(), timeout=5)
    error = from_rpc_error(caught.value, "detection")
    assert (error.code, error.service, error.retryable) == ("unavailable", "detection", True)
    assert "detection service cannot be reached" in error.message
