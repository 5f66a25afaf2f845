"""Everything that can go wrong is one class of exception a kind, which says what happened and what to do."""

from __future__ import annotations

import json
import pickle

import grpc
import pytest

from gateway.chat_schema import AnswerExtension, Delta
from superlink import AsyncClient, Client, SuperlinkError
from superlink.client_errors import (
    BadRequest,
    Conflict,
    ConnectionLost,
    DeadlineExceeded,
    GatewayTimeout,
    GatewayUnreachable,
    InvalidResponse,
    NotDeployed,
    NotFound,
    PermissionDenied,
    RequestFailed,
    ServerFailed,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedImage,
)
from superlink.configuration import ConfigurationError
from superlink.results import TextDelta
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import PROBLEM, chunk, completion, event_stream, png, reply

KINDS = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: BadRequest,
    409: Conflict,
    412: BadRequest,
    413: TooLarge,
    415: UnsupportedImage,
    422: BadRequest,
    429: TooManyRequests,
    500: ServerFailed,
    501: NotDeployed,
    502: ServerFailed,
    503: Unavailable,
    504: DeadlineExceeded,
}


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
async def test_every_kind_of_problem_has_a_class(
    gateway: ScriptedGateway, status: int, kind: type[RequestFailed]
) -> None:
    gateway.answer(reply(PROBLEM.model_copy(update={"status": status, "retry_after_ms": 1500}), status))
    with Client(gateway.url) as client, pytest.raises(kind) as raised:
        client.chat(png(), "Where?")
    async with AsyncClient(gateway.url) as asynchronous:
        with pytest.raises(kind):
            await asynchronous.detect(png(), ["dog"])
    error = raised.value
    assert type(error) is kind
    assert (error.code, error.http_status, error.request_id) == ("image_too_large", status, "r-7")
    assert (error.service, error.retry_after_s) == ("gateway", 1.5)
    assert "Send a smaller one" in error.message
    assert str(error) == f"image_too_large [gateway]: {PROBLEM.detail} (request r-7)"


def test_all_of_them_are_caught_as_one(gateway: ScriptedGateway) -> None:
    gateway.answer(reply(PROBLEM, 413))
    with Client(gateway.url) as client, pytest.raises(SuperlinkError) as raised:
        client.chat(png(), "Where?")
    assert raised.value.status is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.retry_after_s is None


def test_an_error_page_of_something_else_is_still_a_clear_error(gateway: ScriptedGateway) -> None:
    gateway.answer(Reply(502, b"<html>Bad Gateway</html>"))
    with Client(gateway.url) as client, pytest.raises(ServerFailed, match="Bad Gateway") as raised:
        client.chat(None, "hello")
    assert (raised.value.http_status, raised.value.request_id) == (502, "r-1")


def test_a_redirect_is_named_and_not_followed(gateway: ScriptedGateway) -> None:
    gateway.answer(Reply(308, b"", {"location": "https://elsewhere.example/"}))
    with Client(gateway.url, api_key="secret") as client, pytest.raises(RequestFailed, match="elsewhere"):
        client.chat(None, "hello")
    assert len(gateway.received) == 1


@pytest.mark.parametrize(
    "body", [b"<html>It works!</html>", b"[]", b'{"choices": []}', b'{"detections": 3}'], ids=["page", "list", "a", "b"]
)
def test_an_answer_of_another_server_is_told_from_one_of_a_gateway(gateway: ScriptedGateway, body: bytes) -> None:
    gateway.answer(Reply(200, body))
    with Client(gateway.url) as client:
        with pytest.raises(InvalidResponse, match="another server"):
            client.chat(None, "hello")
        with pytest.raises(InvalidResponse, match="another server"):
            client.generate("a cat")
        with pytest.raises(InvalidResponse, match="text/event-stream"):
            next(client.chat(None, "hello", stream=True))
        with pytest.raises(InvalidResponse):
            client.ready()


def test_a_stream_that_fails_half_way_raises(gateway: ScriptedGateway) -> None:
    error = {"error": {"message": PROBLEM.detail, **PROBLEM.model_dump(exclude_none=True)}}
    gateway.answer(event_stream(chunk(Delta(content="Here is")), json.dumps(error)))
    with Client(gateway.url) as client:
        events = client.chat(png(), "Where is the dog?", stream=True)
        assert next(events) == TextDelta("Here is")
        with pytest.raises(TooLarge) as raised:
            next(events)
    assert raised.value.code == "image_too_large"
    assert raised.value.request_id == "r-7"


async def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_answer(gateway: ScriptedGateway) -> None:
    body = f"data: {chunk(Delta(content='Here is'))}\n\n".encode()
    gateway.answer(Reply(200, body, {"content-type": "text/event-stream"}))
    with Client(gateway.url) as client, pytest.raises(ConnectionLost):
        list(client.chat(png(), "Where is the dog?", stream=True))
    gateway.answer(Reply(200, b"data: ", {"content-type": "text/event-stream"}))
    async with AsyncClient(gateway.url) as asynchronous:
        with pytest.raises(ConnectionLost):
            await asynchronous.generate("a cat", on_progress=lambda done, total: None)


def test_an_answer_that_breaks_off_is_a_lost_connection(gateway: ScriptedGateway) -> None:
    whole = completion("Yes.", AnswerExtension())
    gateway.answer(Reply(200, whole.body[:40], {"content-length": str(len(whole.body))}))
    with Client(gateway.url) as client, pytest.raises(ConnectionLost):
        client.chat(None, "hello")


def test_errors_come_back_from_worker_processes(gateway: ScriptedGateway) -> None:
    gateway.answer(reply(PROBLEM, 413))
    with Client(gateway.url) as client, pytest.raises(TooLarge) as raised:
        client.chat(png(), "Where?")
    for error in (raised.value, GatewayUnreachable("http://x", "refused"), GatewayTimeout(3.0)):
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
        assert type(copied) is type(error)
        assert (str(copied), copied.code, copied.message) == (str(error), error.code, error.message)
        assert (copied.request_id, copied.status) == (error.request_id, error.status)


def test_a_key_is_sent_as_bearer_and_stands_in_no_error(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answer(reply(PROBLEM.model_copy(update={"status": 401, "code": "invalid_api_key"}), 401))
    monkeypatch.setenv("SUPERLINK_API_KEY", "sl-environment\n")
    for given, sent in ((None, "sl-environment"), ("sl-argument", "sl-argument")):
        with Client(gateway.url, api_key=given) as client, pytest.raises(Unauthenticated) as raised:
            client.chat(None, "hello")
        assert gateway.received[-1].headers["authorization"] == f"Bearer {sent}"
        assert sent not in str(raised.value)
        assert sent not in repr(vars(client))


@pytest.mark.parametrize("key", ["sl-abc def", "sl-ä", "sl-abc\nhost: other"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError, match="SUPERLINK_API_KEY") as raised:
        Client("http://127.0.0.1:9", api_key=key)
    assert "sl-" not in str(raised.value)


def test_without_a_key_none_is_sent(gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERLINK_API_KEY", raising=False)
    gateway.answer(completion("Yes.", AnswerExtension()))
    with Client(gateway.url, headers={"x-team": "vision"}) as client:
        client.chat(None, "hello")
    assert "authorization" not in gateway.received[0].headers
    assert gateway.received[0].headers["x-team"] == "vision"


async def test_the_address_may_come_from_the_environment(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERLINK_URL", gateway.url + "/")
    gateway.answer(completion("Yes.", AnswerExtension()))
    with Client() as client:
        assert client.url == gateway.url
        assert client.chat(None, "hello").text == "Yes."
    async with AsyncClient() as asynchronous:
        assert asynchronous.url == gateway.url
        assert (await asynchronous.chat(None, "hello")).text == "Yes."


@pytest.mark.parametrize("url", ["localhost:8080", "127.0.0.1", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no address of a gateway"):
        Client(url)
