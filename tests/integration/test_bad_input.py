"""Whatever is sent, the answer is a clear error, and the stack stays up."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial

import grpc
import pytest
from PIL import Image

from superlink import Client
from superlink.client_errors import RequestFailed
from superlink.stack import LocalStack
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, mllm_pb2, mllm_pb2_grpc, types_pb2

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _the_stack_stays_up(stack: LocalStack, client: Client, grey: bytes) -> Iterator[None]:
    before = {name: stack.pid(name) for name in stack.process_names}
    yield
    assert client.ready().ready
    assert {name: stack.pid(name) for name in stack.process_names} == before
    assert client.detect(grey, ["dog"]).presence


def bomb_png(side: int) -> bytes:
    """A PNG of side x side grey pixels in a few hundred kilobytes."""

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", rows) + block(b"IEND", b"")


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((256, 256), 90).save(buffer, format="JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


BAD_IMAGES = {
    "not an image": (b"this is not an image" * 50, "unsupported_image", 415),
    "nothing": (b"", "image_missing", 400),
    "truncated JPEG": (truncated_jpeg(), "image_truncated", 400),
    "30 000 x 30 000 PNG": (bomb_png(30_000), "image_too_large", 413),
    "20 MB of zeros": (bytes(20 * 1024 * 1024), "body_too_large", 413),
    "11 MB of zeros": (bytes(11 * 1024 * 1024), "image_too_large", 413),
}


@pytest.mark.parametrize("kind", sorted(BAD_IMAGES))
@pytest.mark.parametrize("path", ["chat", "detect"])
def test_a_bad_image_is_refused_with_a_reason(client: Client, kind: str, path: str) -> None:
    image, code, status = BAD_IMAGES[kind]
    ask = partial(client.chat, prompt="What is here?") if path == "chat" else partial(client.detect, categories=["dog"])
    with pytest.raises(RequestFailed) as raised:
        ask(image)
    error = raised.value
    assert (error.code, error.http_status) == (code, status)
    assert error.request_id
    assert len(error.message) > 20
    assert not error.retryable


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt_is_refused(client: Client, grey: bytes, prompt: str) -> None:
    with pytest.raises(RequestFailed) as raised:
        client.chat(grey, prompt)
    assert (raised.value.code, raised.value.http_status) == ("empty_prompt", 400)


def test_empty_categories_are_refused(client: Client, grey: bytes) -> None:
    with pytest.raises(RequestFailed) as raised:
        client.detect(grey, [" ", ""])
    assert raised.value.code == "empty_prompt"


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(client: Client, grey: bytes) -> None:
    with pytest.raises(RequestFailed) as raised:
        client.chat(grey, "dog " * 2000)
    assert raised.value.code == "prompt_too_long"
    assert "4,000" in raised.value.message


def test_too_many_categories_are_refused_with_the_limit(client: Client, grey: bytes) -> None:
    with pytest.raises(RequestFailed) as raised:
        client.detect(grey, [f"thing {number}" for number in range(101)])
    assert raised.value.code == "too_many_phrases"


def test_an_unknown_model_is_answered_with_the_known_one(client: Client, grey: bytes) -> None:
    with pytest.raises(RequestFailed) as raised:
        client.chat(grey, "What is here?", model="gpt-9")
    assert (raised.value.code, raised.value.http_status) == ("unknown_model", 404)
    assert "superlink-tiny" in raised.value.message


def test_a_field_that_nobody_knows_is_named(stack: LocalStack) -> None:
    import httpx

    response = httpx.post(f"{stack.url}/v1/detect", json={"image": "data:image/png;base64,", "categoris": ["dog"]})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert "categoris" in response.json()["detail"]


def test_a_body_that_is_not_json_is_refused(stack: LocalStack) -> None:
    import httpx

    response = httpx.post(
        f"{stack.url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["code"] == "invalid_request"


def test_the_mllm_refuses_an_unknown_route(stack: LocalStack, grey: bytes) -> None:
    request = mllm_pb2.LinkRequest(route="[FLY]", phrases=["dog"], image=types_pb2.Image(encoded=grey))
    with grpc.insecure_channel(stack.profile.mllm.address) as channel, pytest.raises(grpc.RpcError) as raised:
        mllm_pb2_grpc.MllmStub(channel).Link(request, timeout=20)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "[DET]" in raised.value.details()


def test_a_decoder_refuses_an_unknown_route(stack: LocalStack, grey: bytes) -> None:
    with grpc.insecure_channel(stack.profile.decoders["detection"].address) as channel:
        decoder = decoder_pb2_grpc.DecoderStub(channel)
        description = decoder.Describe(decoder_pb2.DescribeRequest(), timeout=20)
        width = description.link_width
        embedding = types_pb2.Tensor(data=bytes(4 * width), dtype="float32", shape=[width])
        request = decoder_pb2.DecodeRequest(
            image=types_pb2.Image(encoded=grey),
            groups=[types_pb2.LinkGroup(route="[FLY]", phrase="dog", embedding=embedding)],
            adapter_version=description.adapter_version,
            input_mode=decoder_pb2.INPUT_MODE_LINK,
        )
        with pytest.raises(grpc.RpcError) as raised:
            list(decoder.Decode(request, timeout=20))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "[FLY]" in raised.value.details()


def test_a_decoder_refuses_links_of_another_adapter(stack: LocalStack, grey: bytes) -> None:
    with grpc.insecure_channel(stack.profile.decoders["detection"].address) as channel:
        decoder = decoder_pb2_grpc.DecoderStub(channel)
        width = decoder.Describe(decoder_pb2.DescribeRequest(), timeout=20).link_width
        embedding = types_pb2.Tensor(data=bytes(4 * width), dtype="float32", shape=[width])
        request = decoder_pb2.DecodeRequest(
            image=types_pb2.Image(encoded=grey),
            groups=[types_pb2.LinkGroup(route="[DET]", phrase="dog", embedding=embedding)],
            adapter_version="some other",
            input_mode=decoder_pb2.INPUT_MODE_LINK,
        )
        with pytest.raises(grpc.RpcError) as raised:
            list(decoder.Decode(request, timeout=20))
    assert "some other" in raised.value.details()
