"""A deployment that needs API keys answers nobody without one, and keeps none in a form that could be used."""

import asyncio
import json
import signal
import threading
from pathlib import Path

import openai
import pytest
from api_key_maker import REQUIRED, bearer, expect_problem, new_key
from gateway_process import alone, free_port, gateway_process
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis, live_redis
from request_bodies import chat_body

from superlink.api_keys import ApiKeys
from superlink.configuration import ConfigurationError
from superlink.redis_connection import connect

pytestmark = pytest.mark.surface


async def test_a_key_lets_in_and_its_absence_does_not(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url)
    stranger = f"sl_{record.id}_{'0' * 48}"
    attempts = [
        (None, "missing_api_key"),
        ("Basic dXNlcjpwdw==", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer nonsense", "invalid_api_key"),
        (f"Bearer {stranger}", "invalid_api_key"),
        (f"Bearer sl_{'a' * 16}_{'b' * 48}", "invalid_api_key"),
        (f"Bearer {key}0", "invalid_api_key"),
    ]

    for authorization, code in attempts:
        headers = {} if authorization is None else {"authorization": authorization}
        response = await keyed.http.post("/v1/chat/completions", json=chat_body("Hi"), headers=headers)
        assert "Bearer" in expect_problem(response, 401, code)["detail"] or code != "missing_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert not keyed.workers.mllm.generate_requests

    for authorization in (f"Bearer {key}", f"bearer  {key}"):
        headers = {"authorization": authorization}
        response = await keyed.http.post("/v1/chat/completions", json=chat_body("Hi"), headers=headers)
        assert response.status_code == 200, response.text


async def test_probes_metrics_and_the_description_need_no_key(keyed: LiveGateway) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/startupz", "/metrics", "/openapi.json", "/docs"):
        assert (await keyed.http.get(path)).status_code == 200, path
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/detect"), ("POST", "/mcp"), ("GET", "/made/up")):
        expect_problem(await keyed.http.request(method, path), 401, "missing_api_key")


async def test_openai_clients_send_the_key(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url)
    messages = chat_body("Hi")["messages"]

    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0) as client:
        answer = await client.chat.completions.create(model="superlink-scripted", messages=messages)
        assert answer.choices[0].message.content == "Nothing to say."
    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key="sk-other", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(model="superlink-scripted", messages=messages)
        assert refused.value.body["code"] == "invalid_api_key"


async def test_a_revoked_key_is_refused_from_then_on(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url)
    assert (await keyed.http.get("/v1/models", headers=bearer(key))).status_code == 200

    async with connect(redis_server.url) as redis:
        await ApiKeys(redis).revoke(record.id)

    response = await keyed.http.get("/v1/models", headers=bearer(key))
    assert record.id in expect_problem(response, 401, "revoked_api_key")["detail"]
    # Of a revoked key, too, only its owner learns what became of it.
    guess = f"sl_{record.id}_{'0' * 48}"
    expect_problem(await keyed.http.get("/v1/models", headers=bearer(guess)), 401, "invalid_api_key")


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


async def test_what_is_kept_of_a_key_cannot_be_used(tmp_path: Path) -> None:
    with live_redis(tmp_path) as server:
        key, record = await new_key(server.url)
        secret = key.rpartition("_")[2]
        kept = b"".join(file.read_bytes() for file in files_in(tmp_path))
        assert record.sha256.encode() in kept
        assert secret.encode() not in kept


async def test_the_log_has_the_id_of_the_key_and_never_the_key(
    keyed: LiveGateway, redis_server: LiveRedis, caplog: pytest.LogCaptureFixture
) -> None:
    key, record = await new_key(redis_server.url)
    with caplog.at_level("DEBUG"):
        await keyed.http.get("/v1/models", headers=bearer(key))

    lines = [json.dumps({**entry.__dict__, "text": entry.getMessage()}, default=str) for entry in caplog.records]
    assert any(record.id in line for line in lines)
    assert not any(key in line for line in lines)


async def test_a_request_without_a_key_is_refused_before_its_body_is_sent(keyed: LiveGateway) -> None:
    host, port = keyed.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000000\r\n\r\n")
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()

    assert b" 401 " in status


async def test_the_description_says_that_a_key_is_needed(keyed: LiveGateway, gateway: LiveGateway) -> None:
    document = (await keyed.http.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["api_key"] == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{"api_key": []}]
    assert "401" in document["paths"]["/v1/detect"]["post"]["responses"]
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert document["paths"]["/metrics"]["get"]["security"] == []

    document = (await gateway.http.get("/openapi.json")).json()
    assert "security" not in document
    assert "401" not in document["paths"]["/v1/detect"]["post"]["responses"]


@pytest.mark.faults
async def test_without_redis_nobody_is_let_in_until_it_is_back(tmp_path: Path) -> None:
    with live_redis(tmp_path) as server:
        key, _ = await new_key(server.url)
        async with live_gateway(redis_url=server.url, keys=REQUIRED) as gateway:
            assert (await gateway.http.get("/v1/models", headers=bearer(key))).status_code == 200

            server.stop(signal.SIGKILL)
            response = await gateway.http.get("/v1/models", headers=bearer(key))
            problem = expect_problem(response, 503, "redis_unavailable")
            assert (problem["service"], problem["retryable"]) == ("redis", True)
            assert response.headers["retry-after"] == "1"
            assert server.url.rpartition("/")[0] not in response.text
            assert (await gateway.http.get("/livez")).status_code == 200
            ready = await gateway.http.get("/readyz")
            assert (ready.status_code, ready.json()["service"]) == (503, "redis")

            server.start()
            response = await gateway.http.get("/v1/models", headers=bearer(key))
            assert response.status_code == 200, response.text
            assert (await gateway.http.get("/readyz")).status_code == 200


@pytest.mark.faults
async def test_a_redis_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with live_redis(tmp_path) as server:
        key, _ = await new_key(server.url)
        async with live_gateway(redis_url=server.url, keys=REQUIRED) as gateway:
            assert (await gateway.http.get("/v1/models", headers=bearer(key))).status_code == 200
            server.send(signal.SIGSTOP)
            response = await gateway.http.get("/v1/models", headers=bearer(key), timeout=8)
            expect_problem(response, 503, "redis_unavailable")
            server.send(signal.SIGCONT)
            assert (await gateway.http.get("/v1/models", headers=bearer(key))).status_code == 200


EVERY_ADDRESS = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param(
            {"host": EVERY_ADDRESS},
            [EVERY_ADDRESS, "gateway.keys.required", "127.0.0.1", "gateway.keys.allow_anyone"],
            id="open to the network",
        ),
        pytest.param(
            {"keys": {"required": True}},
            ["gateway.keys.required", "gateway.redis_url", "SUPERLINK_REDIS_URL"],
            id="no Redis",
        ),
    ],
)
def test_a_gateway_that_cannot_hold_to_its_settings_does_not_start(
    tmp_path: Path, settings: dict[str, object], words: list[str]
) -> None:
    with gateway_process(tmp_path, free_port(), alone(**settings)) as process:
        _, said = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "Traceback" not in said
    for word in words:
        assert word in said


def test_a_gateway_without_keys_says_so_when_it_starts(tmp_path: Path) -> None:
    with gateway_process(tmp_path, free_port(), alone()) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stderr is not None
        entries = (json.loads(line) for line in process.stderr)
        said = next(entry["message"] for entry in entries if entry["level"] == "warning")
        process.kill()
        guard.cancel()

    assert "no API key is needed" in said
    assert "from this machine" in said


@pytest.mark.parametrize("address", ["localhost:6379", "http://:word@localhost", "redis://localhost:high"])
def test_an_address_of_a_redis_that_is_none_is_named_without_its_password(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"gateway\.redis_url") as refused:
        connect(address)
    assert "word" not in str(refused.value)
