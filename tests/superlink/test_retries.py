"""Calls are repeated where that is safe and helps, within their time, and never more often than allowed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import httpx
import pytest

from gateway.chat_schema import AnswerExtension
from superlink import AsyncClient, Client
from superlink.client_errors import (
    Conflict,
    ConnectionLost,
    GatewayTimeout,
    GatewayUnreachable,
    RequestFailed,
    ServerFailed,
    TooManyRequests,
    Unavailable,
)
from superlink.connection_settings import connection_settings
from superlink.rest import Call
from superlink.retries import Attempts
from tests.superlink.conftest import Received, Reply, ScriptedGateway, scripted_gateway
from tests.superlink.gateway_replies import PROBLEM, completion, png, reply

YES = completion("Yes.", AnswerExtension())


def not_now(status: int = 503, retry_after: str = "0", **changes: object) -> Reply:
    problem = PROBLEM.model_copy(update={"status": status, "retryable": True, **changes})
    return reply(problem, status, **{"retry-after": retry_after})


def pauses_between(gateway: ScriptedGateway) -> list[float]:
    """Seconds from each request to the next one."""
    return [later.at - earlier.at for earlier, later in pairwise(gateway.received)]


@contextmanager
def no_server() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@contextmanager
def server_that_comes_late(port: int, seconds: float) -> Iterator[list[ScriptedGateway]]:
    started: list[ScriptedGateway] = []
    stop = threading.Event()

    def serve() -> None:
        time.sleep(seconds)
        with scripted_gateway(port) as gateway:
            gateway.answer(YES)
            started.append(gateway)
            stop.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield started
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("status", [409, 429, 503])
def test_not_now_is_tried_again_after_the_time_that_the_gateway_names(gateway: ScriptedGateway, status: int) -> None:
    gateway.answer(not_now(status, "0.6"), not_now(status, "0.3"), YES)
    with Client(gateway.url) as client:
        assert client.chat(None, "hello").text == "Yes."
    first, second = pauses_between(gateway)
    assert first >= 0.6
    assert second >= 0.3


def test_streams_are_tried_again_until_they_begin(gateway: ScriptedGateway) -> None:
    done = Reply(200, b"data: [DONE]\n\n", {"content-type": "text/event-stream"})
    gateway.answer(not_now(), done)
    with Client(gateway.url) as client, client.chat(None, "hello", stream=True) as events:
        assert len(list(events)) == 1
    assert len(gateway.received) == 2


async def test_the_asynchronous_client_tries_again_too(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now(429, "0.6"), YES)
    async with AsyncClient(gateway.url) as client:
        assert (await client.chat(None, "hello")).text == "Yes."
    (pause,) = pauses_between(gateway)
    assert pause >= 0.6


def test_a_date_is_a_time_as_well(gateway: ScriptedGateway) -> None:
    def refuse_first(received: Received) -> Reply:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        return YES if len(gateway.received) > 1 else Reply(503, b"<html>", {"retry-after": later})

    gateway.decide = refuse_first
    with Client(gateway.url) as client:
        client.chat(None, "hello")
    (pause,) = pauses_between(gateway)
    # Dates have whole seconds, and the answer takes some of the time.
    assert pause >= 1


def test_a_gateway_that_starts_a_little_later_is_met() -> None:
    with no_server() as port:
        pass
    with server_that_comes_late(port, 0.4), Client(f"http://127.0.0.1:{port}") as client:
        assert client.chat(None, "hello").text == "Yes."


async def test_the_asynchronous_client_meets_it_too() -> None:
    with no_server() as port:
        pass
    with server_that_comes_late(port, 0.4):
        async with AsyncClient(f"http://127.0.0.1:{port}") as client:
            assert (await client.chat(None, "hello")).text == "Yes."


def test_no_gateway_says_how_to_start_one() -> None:
    with no_server() as port, Client(f"http://127.0.0.1:{port}", max_retries=1) as client:
        began = time.monotonic()
        with pytest.raises(GatewayUnreachable, match="superlink up"):
            client.chat(None, "hello")
        assert 0.25 <= time.monotonic() - began < 5


def test_retries_end(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now())
    with Client(gateway.url, max_retries=2) as client, pytest.raises(Unavailable):
        client.detect(png(), ["dog"])
    assert len(gateway.received) == 3


def test_retries_do_not_outlast_the_timeout(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now(retry_after="30"))
    began = time.monotonic()
    with Client(gateway.url, timeout_s=5) as client, pytest.raises(Unavailable) as raised:
        client.detect(png(), ["dog"])
    assert time.monotonic() - began < 5
    assert raised.value.retry_after_s == 30


def test_a_later_attempt_has_what_is_left_of_the_time(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now(retry_after="0.5"), YES)
    with Client(gateway.url, timeout_s=7) as client:
        client.chat(None, "hello")
    first, second = (float(sent.headers["x-request-timeout-s"]) for sent in gateway.received)
    assert first == 7
    assert 1 < second <= 6.5


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(PROBLEM.model_copy(update={"status": 500, "retryable": True}), 500), ServerFailed),
        # A gateway knows when trying again does not help.
        (not_now(429, retryable=False), TooManyRequests),
        (not_now(409, retryable=False), Conflict),
        # Whatever listens there, it does not say that the request was not taken.
        (Reply(502, b"<html>Bad Gateway</html>"), ServerFailed),
    ],
)
def test_other_failures_are_not_repeated(gateway: ScriptedGateway, answer: Reply, kind: type[RequestFailed]) -> None:
    gateway.answer(answer)
    with Client(gateway.url) as client, pytest.raises(kind):
        client.chat(None, "hello")
    assert len(gateway.received) == 1


def test_a_request_that_may_have_been_taken_is_not_repeated() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connections = 0

        def hang_up() -> None:
            nonlocal connections
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections += 1
                connection.recv(100)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            with (
                Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
                pytest.raises(ConnectionLost, match="before the answer was complete"),
            ):
                client.chat(None, "hello")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert connections == 1


def test_a_silent_gateway_ends_in_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlink.retries.TIMEOUT_MARGIN_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout_s=0.2) as client, pytest.raises(GatewayTimeout, match="timeout_s"):
            client.chat(None, "hello")


def test_attempts_of_a_call_are_one_request_to_the_gateway_and_calls_are_not(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now(), not_now(), YES)
    with Client(gateway.url) as client:
        client.chat(None, "hello")
        client.chat(None, "hello")
    first, second, third, another = (sent.headers["idempotency-key"] for sent in gateway.received)
    assert first == second == third != another


def test_a_key_of_the_callers_own_is_sent(gateway: ScriptedGateway) -> None:
    gateway.answer(not_now(), YES)
    with Client(gateway.url) as client:
        client.chat(None, "hello", idempotency_key="job-7")
        with pytest.raises(ValueError, match="idempotency_key"):
            client.chat(None, "hello", idempotency_key="job 7")
    assert [sent.headers["idempotency-key"] for sent in gateway.received] == ["job-7", "job-7"]
    assert "job-7" not in gateway.received[0].body.decode()


@pytest.mark.parametrize(
    ("headers", "shortest", "longest"), [({"retry-after": "4"}, 4, 5), ({}, 0.25, 0.5)], ids=["named", "own"]
)
def test_clients_that_were_refused_together_do_not_come_back_together(
    headers: dict[str, str], shortest: float, longest: float
) -> None:
    settings = connection_settings("http://127.0.0.1:9", None, 60, 3, None)
    refusal = httpx.Response(503, headers=headers)
    pauses = [Attempts(Call("/v1/detect", {}), settings).pause_after_response(refusal) for _ in range(50)]
    assert shortest <= min(pauses) < max(pauses) <= longest
    assert max(pauses) - min(pauses) > (longest - shortest) / 3


def test_pauses_grow_where_the_gateway_names_no_time() -> None:
    attempts = Attempts(Call("/v1/detect", {}), connection_settings("http://127.0.0.1:9", None, 1000, 7, None))
    pauses = [attempts.pause_after_response(httpx.Response(503)) for _ in range(7)]
    for pause, longest in zip(pauses, (0.5, 1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= pause <= longest
