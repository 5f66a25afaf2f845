"""``/v1/files``, as OpenAI's client uses it and as nobody should."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from api_key_maker import bearer, expect_problem, new_key
from gateway_process import alone, free_port, gateway_process
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from request_bodies import chat_body, encode_picture
from scripted_workers import finish, text

pytestmark = pytest.mark.surface

BATCH = b'{"custom_id": "1", "method": "POST", "url": "/v1/detect", "body": {}}\n'


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


async def upload(gateway: LiveGateway, content: bytes = BATCH, **form: Any) -> httpx.Response:
    headers = form.pop("headers", {})
    return await gateway.http.post(
        "/v1/files", files={"file": ("requests.jsonl", content)}, data={"purpose": "batch", **form}, headers=headers
    )


def stored(gateway: LiveGateway) -> list[str]:
    folder = Path(gateway.workers.profile.artifacts.url)
    return sorted(file.suffix for file in folder.rglob("*") if file.is_file())


async def test_openais_client_uploads_lists_reads_and_deletes(client: openai.AsyncOpenAI) -> None:
    before = int(time.time())
    batch = await client.files.create(file=("requests.jsonl", BATCH), purpose="batch")
    picture = await client.files.create(file=("雪 & sñow.png", encode_picture()), purpose="vision")
    data = await client.files.create(
        file=b"\0\r\n--x\r\n" * 1000, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    assert (batch.object, batch.filename, batch.bytes, batch.purpose) == ("file", "requests.jsonl", len(BATCH), "batch")
    assert before <= batch.created_at <= int(time.time())
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 30 * 24 * 3600
    assert picture.filename == "雪 & sñow.png"
    assert data.expires_at is not None
    assert data.expires_at - data.created_at == 3600

    assert await client.files.retrieve(batch.id) == batch
    assert (await client.files.content(batch.id)).content == BATCH
    assert (await client.files.content(data.id)).content == b"\0\r\n--x\r\n" * 1000
    assert [each.id async for each in client.files.list()] == [data.id, picture.id, batch.id]
    assert [each.id async for each in client.files.list(order="asc", purpose="vision")] == [picture.id]
    assert [each.id async for each in client.files.list(purpose="batch_output")] == []

    deleted = await client.files.delete(picture.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (picture.id, True, "file")
    with pytest.raises(openai.NotFoundError) as gone:
        await client.files.content(picture.id)
    assert gone.value.code == "unknown_file"
    assert [each.id async for each in client.files.list()] == [data.id, batch.id]


async def test_the_client_goes_through_pages(client: openai.AsyncOpenAI) -> None:
    made = []
    for _ in range(5):
        made.append((await client.files.create(file=BATCH, purpose="batch")).id)
        await asyncio.sleep(0.002)

    first = await client.files.list(limit=2)
    assert (first.has_more, [each.id for each in first.data]) == (True, made[:2:-1])
    assert [each.id async for each in client.files.list(limit=2)] == made[::-1]
    assert [each.id async for each in client.files.list(limit=3, order="asc")] == made


async def test_an_image_file_is_asked_about_by_its_id(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    picture = await client.files.create(file=("scene.png", png), purpose="vision")
    question: Any = [
        {"type": "file", "file": {"file_id": picture.id}},
        {"type": "text", "text": "What is here?"},
    ]

    for content in (question, [{"type": "image_url", "image_url": {"url": picture.id}}, question[1]]):
        gateway.workers.mllm.reset()
        await client.chat.completions.create(
            model="superlink-scripted", messages=[{"role": "user", "content": content}]
        )
        [request] = gateway.workers.mllm.generate_requests
        assert [part.WhichOneof("part") for part in request.messages[-1].parts] == ["image", "text"]
        assert request.messages[-1].parts[0].image.encoded == png
    found = await gateway.http.post("/v1/detect", json={"image": picture.id, "categories": ["dog"]})
    assert found.status_code == 200, found.text


async def test_a_file_part_may_hold_the_image_itself(gateway: LiveGateway, png: bytes) -> None:
    url = chat_body("Hi", png)["messages"][0]["content"][0]["image_url"]["url"]
    for data in (url, url.partition(",")[2]):
        gateway.workers.mllm.reset()
        content = [{"type": "file", "file": {"file_data": data, "filename": "x.png"}}, {"type": "text", "text": "Hi"}]
        response = await gateway.http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}
        )
        assert response.status_code == 200, response.text
        assert gateway.workers.mllm.generate_requests[0].messages[0].parts[0].image.encoded == png


async def test_a_file_that_is_no_image_is_refused_where_an_image_is_wanted(gateway: LiveGateway, png: bytes) -> None:
    requests = (await upload(gateway)).json()["id"]
    large = (await upload(gateway, bytes(11 * 1024 * 1024), purpose="user_data")).json()["id"]
    unknown = "file-01a21e318d4da644a0c25a5d2109"

    for file_id, status, code in (
        (requests, 415, "unsupported_image"),
        (large, 413, "image_too_large"),
        (unknown, 404, "unknown_file"),
    ):
        body = {"image": file_id, "categories": ["dog"]}
        expect_problem(await gateway.http.post("/v1/detect", json=body), status, code)
        part = {"type": "file", "file": {"file_id": file_id}}
        chat = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Hi"}]}]}
        expect_problem(await gateway.http.post("/v1/chat/completions", json=chat), status, code)


async def test_contents_are_saved_and_never_shown(gateway: LiveGateway) -> None:
    page = b"<script>alert(1)</script>"
    response = await gateway.http.post(
        "/v1/files", files={"file": ('ä"b\\c.html', page, "text/html")}, data={"purpose": "user_data"}
    )

    content = await gateway.http.get(f"/v1/files/{response.json()['id']}/content")
    assert content.content == page
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert content.headers["content-length"] == str(len(page))


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": ["batch", "batch"]}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"purposes": "batch"}, "purposes"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "seconds"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "anchor"),
        ({"note": "x" * 2000}, "text field"),
    ],
)
async def test_bad_fields_are_named_and_nothing_is_kept(gateway: LiveGateway, form: dict[str, Any], word: str) -> None:
    assert word in expect_problem(await upload(gateway, **form), 400, "invalid_request")["detail"]
    expect_problem(await upload(gateway, **{"expires_after[seconds]": "3600"}), 400, "conflicting_fields")
    assert stored(gateway) == []


async def test_an_upload_has_one_file(gateway: LiveGateway) -> None:
    for files in ({}, {"image": BATCH}, [("file", BATCH), ("file", BATCH)]):
        response = await gateway.http.post("/v1/files", files=files or {"purpose": (None, "batch")})
        assert "file" in expect_problem(response, 400, "invalid_request")["detail"]
    expect_problem(await gateway.http.post("/v1/files", json={"purpose": "batch"}), 400, "invalid_request")
    assert stored(gateway) == []


@pytest.mark.faults
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf a fi',
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nwhole\r\n--x',
        b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nno name\r\n--x--\r\n',
        b"--x\r\nContent-Disposition\r\n\r\n--x--\r\n",
    ],
)
async def test_a_body_that_is_no_multipart_is_refused_and_nothing_is_kept(gateway: LiveGateway, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    expect_problem(await gateway.http.post("/v1/files", content=body, headers=headers), 400, "invalid_multipart")
    headers = {"content-type": "multipart/form-data"}
    expect_problem(await gateway.http.post("/v1/files", content=body, headers=headers), 400, "invalid_multipart")
    assert stored(gateway) == []


async def test_bad_options_of_a_list_are_named(gateway: LiveGateway) -> None:
    for query in ("limit=0", "limit=10001", "limit=x", "order=up", "purpose=none", "sort=name"):
        name = query.partition("=")[0]
        assert name in expect_problem(await gateway.http.get(f"/v1/files?{query}"), 400, "invalid_request")["detail"]


@pytest.mark.parametrize(
    "file_id", ["file-1", "..%2F..%2Fetc%2Fpasswd", "%00", "file-01a21e318d4da644a0c25a5d2109.json"]
)
async def test_unknown_files_are_problems(gateway: LiveGateway, file_id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = await gateway.http.request(method, f"/v1/files/{file_id}{path}")
        assert expect_problem(response, 404, response.json()["code"])["code"] in ("unknown_file", "unknown_path")


async def test_every_key_has_files_of_its_own(keyed: LiveGateway, redis_server: LiveRedis, png: bytes) -> None:
    (ada, _), (eve, _) = await new_key(redis_server.url), await new_key(redis_server.url)
    file_id = (await upload(keyed, png, purpose="vision", headers=bearer(ada))).json()["id"]

    async def ask(method: str, path: str, key: str, **body: Any) -> httpx.Response:
        return await keyed.http.request(method, path, headers=bearer(key), **body)

    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        expect_problem(await ask(method, f"/v1/files/{file_id}{path}", eve), 404, "unknown_file")
    expect_problem(await ask("POST", "/v1/detect", eve, json={"image": file_id, "phrase": "dog"}), 404, "unknown_file")
    assert (await ask("GET", "/v1/files", eve)).json()["data"] == []
    assert (await ask("GET", f"/v1/files/{file_id}/content", ada)).content == png
    assert (await ask("POST", "/v1/detect", ada, json={"image": file_id, "phrase": "dog"})).status_code == 200
    assert (await keyed.http.get("/v1/files")).status_code == 401


async def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    async with live_gateway(artifacts={"max_file_bytes": 100_000}) as gateway:
        expect_problem(await upload(gateway, bytes(10**6)), 413, "body_too_large")
        # The multipart body around it is allowed for.
        expect_problem(await upload(gateway, bytes(100_001)), 413, "file_too_large")
        assert (await upload(gateway, bytes(100_000))).status_code == 200
        problem = expect_problem(await upload(gateway, bytes(160_000)), 413, "file_too_large")
        assert "100,000 bytes" in problem["detail"]
        assert stored(gateway) == [".data", ".json"]


async def test_a_key_may_keep_so_much() -> None:
    async with live_gateway(artifacts={"max_file_bytes": 200_000, "max_owner_bytes": 250_000}) as gateway:
        kept = (await upload(gateway, bytes(200_000))).json()["id"]
        expect_problem(await upload(gateway, bytes(150_000)), 413, "storage_quota_exceeded")
        await gateway.http.delete(f"/v1/files/{kept}")
        assert (await upload(gateway, bytes(150_000))).status_code == 200


@pytest.mark.faults
async def test_a_body_without_a_length_is_counted_while_it_is_stored() -> None:
    async with live_gateway(artifacts={"max_file_bytes": 100_000}) as gateway:

        async def endless() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(1000):
                yield bytes(10_000)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        response = await gateway.http.post("/v1/files", content=endless(), headers=headers)
        expect_problem(response, 413, "body_too_large")
        assert stored(gateway) == []


@pytest.mark.faults
async def test_an_upload_that_breaks_off_leaves_nothing(gateway: LiveGateway) -> None:
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(2 * 1024 * 1024)
        begun.set()
        await asyncio.Event().wait()

    headers = {"content-type": "multipart/form-data; boundary=x"}
    leaving = asyncio.create_task(gateway.http.post("/v1/files", content=stalling(), headers=headers))
    await begun.wait()
    for _ in range(200):
        if stored(gateway) == [".data"]:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("nothing was written while it arrived")
    assert (await gateway.http.get("/v1/files")).json()["data"] == []
    leaving.cancel()
    for _ in range(200):
        if not stored(gateway):
            break
        await asyncio.sleep(0.01)
    assert stored(gateway) == []
    assert (await upload(gateway)).status_code == 200


@pytest.mark.faults
async def test_a_slow_upload_is_given_up(gateway: LiveGateway) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(8):
            yield b" "
            await asyncio.sleep(0.1)

    headers = {"content-type": "multipart/form-data; boundary=x", "x-request-timeout-s": "0.3"}
    response = await gateway.http.post("/v1/files", content=dripping(), headers=headers)

    expect_problem(response, 504, "body_too_slow")
    assert stored(gateway) == []


@pytest.mark.faults
async def test_a_store_that_is_away_takes_nothing_else_down(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "file").write_text("")
    async with live_gateway(artifacts={"url": str(tmp_path / "file" / "artifacts")}) as gateway:
        problem = expect_problem(await upload(gateway), 503, "storage_unavailable")
        assert (problem["service"], problem["hop"], problem["retryable"]) == ("artifacts", "gateway>artifacts", True)
        gateway.workers.mllm.rounds = [[text("A dog."), finish()]]
        assert (await gateway.http.post("/v1/chat/completions", json=chat_body("Hi", png))).status_code == 200
        assert (await gateway.http.get("/readyz")).status_code == 200


async def test_what_has_expired_is_deleted(tmp_path: Path) -> None:
    async with live_gateway(artifacts={"url": str(tmp_path), "keep_s": 1}) as gateway:
        file_id = (await upload(gateway)).json()["id"]
        await asyncio.sleep(1.1)
        expect_problem(await gateway.http.get(f"/v1/files/{file_id}"), 404, "unknown_file")
        assert stored(gateway) == [".data", ".json"]
    async with live_gateway(artifacts={"url": str(tmp_path)}) as gateway:
        for _ in range(200):
            if not stored(gateway):
                break
            await asyncio.sleep(0.01)
        assert stored(gateway) == []


def test_a_large_file_is_never_in_memory(gateway_folder: Path, tmp_path: Path) -> None:
    """A gateway in a process of its own, whose memory is watched while 150 MB go through it both ways."""
    size = 150 * 1024 * 1024
    port = free_port()
    profile = {**alone(), "artifacts": {"url": str(gateway_folder)}}
    with gateway_process(tmp_path, port, profile, stderr=None) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
                _until_alive(http)
                before = _peak_memory(process.pid)
                with _large_file(tmp_path, size).open("rb") as file:
                    response = http.post("/v1/files", files={"file": file}, data={"purpose": "user_data"})
                assert response.json()["bytes"] == size
                with http.stream("GET", f"/v1/files/{response.json()['id']}/content") as content:
                    assert sum(len(piece) for piece in content.iter_raw()) == size
                assert _peak_memory(process.pid) - before < 40 * 1024 * 1024
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def gateway_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def _until_alive(http: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if http.get("/livez").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the gateway did not start")


def _large_file(folder: Path, size: int) -> Path:
    file = folder / "large"
    with file.open("wb") as written:
        written.truncate(size)
    return file


def _peak_memory(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024
