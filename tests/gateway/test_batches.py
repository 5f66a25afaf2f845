"""``/v1/batches`` with real workers: as OpenAI's client uses it, and with every line that should not be there."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from api_key_maker import bearer, expect_problem, new_key
from batch_workers import ENABLED, batch_gateway, batch_worker, look, order, rows_of, until_over, upload
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from PIL import Image
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import detection, detections

from gateway.problems import Problem
from orchestrator.batches.rows import problem_of
from superlink.batch_documents import ENDPOINTS
from superlink.batch_store import open_batches
from superlink.errors import invalid_argument

pytestmark = pytest.mark.surface


def line(custom_id: str, body: Any, url: str = "/v1/detect", **others: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **others}).encode() + b"\n"


def detect_body(**others: Any) -> dict[str, Any]:
    return {"image": data_url(encode_picture()), "categories": ["dog"], **others}


@pytest.fixture
async def gateway(redis_server: LiveRedis) -> AsyncIterator[LiveGateway]:
    async with batch_gateway(redis_server) as running:
        yield running


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


async def test_openais_client_makes_waits_for_reads_and_lists_batches(
    worker: None, client: openai.AsyncOpenAI, gateway: LiveGateway
) -> None:
    lines = [line(f"scene-{number}", chat_body("Where is the dog?"), "/v1/chat/completions") for number in range(12)]
    lines[5] = line("scene-5", {"messages": "none"}, "/v1/chat/completions")
    file = await client.files.create(file=("requests.jsonl", b"".join(lines)), purpose="batch")
    made = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "night"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.object, made.status, made.endpoint) == ("batch", "validating", "/v1/chat/completions")
    assert made.expires_at == made.created_at + 24 * 3600

    for _ in range(300):
        batch = await client.batches.retrieve(made.id)
        if batch.status == "completed":
            break
        assert batch.status in ("validating", "in_progress", "finalizing")
        await asyncio.sleep(0.1)
    assert batch.status == "completed"
    assert batch.metadata == {"run": "night"}
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 12, "completed": 11, "failed": 1}
    moments = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert all(moment is not None for moment in moments)
    assert list(moments) == sorted(moments, key=int)

    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    output = await client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at == output.created_at + 3600
    answers = [json.loads(row) for row in (await client.files.content(batch.output_file_id)).text.splitlines()]
    assert {row["custom_id"] for row in answers} == {f"scene-{number}" for number in range(12) if number != 5}
    first = answers[0]
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["request_id"].startswith(batch.id)
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "Nothing to say."
    [failed] = [json.loads(row) for row in (await client.files.content(batch.error_file_id)).text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("scene-5", 400)
    assert failed["error"]["code"] == failed["response"]["body"]["code"] == "invalid_request"

    more = [
        (await client.batches.create(input_file_id=file.id, endpoint="/v1/answer", completion_window="1h")).id
        for _ in range(3)
    ]
    assert [each.id async for each in client.batches.list(limit=2)] == [*more[::-1], batch.id]


async def test_every_endpoint_can_be_asked(worker: None, gateway: LiveGateway, png: bytes) -> None:
    image = data_url(png)
    bodies: dict[str, Any] = {
        "/v1/chat/completions": chat_body("What is here?", png),
        "/v1/answer": {"image": image, "prompt": "What is here?"},
        "/v1/detect": detect_body(),
        "/v1/segment": detect_body(),
        "/v1/pose": detect_body(categories=["person"]),
        "/v1/images/generations": {"prompt": "a cat"},
        "/v1/images/edits": {"image": image, "prompt": "make it blue"},
    }
    assert bodies.keys() == set(ENDPOINTS)
    batches = [await order(gateway, line("only", body, url), url) for url, body in bodies.items()]
    for made, (url, body) in zip(batches, bodies.items(), strict=True):
        over = await until_over(gateway, made)
        assert over["request_counts"] == {"total": 1, "completed": 1, "failed": 0}, (url, over)
        [row] = await rows_of(gateway, over["output_file_id"])
        alone = await gateway.http.post(url, json=body)
        assert row["response"]["body"].keys() == alone.json().keys()


async def test_poisoned_lines_fail_alone(redis_server: LiveRedis, tmp_path: Path, png: bytes) -> None:
    pages = io.BytesIO()
    page = Image.new("L", (8, 8))
    page.save(pages, format="TIFF", save_all=True, append_images=[page] * 39)
    huge = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(huge, format="PNG")
    good = detect_body()
    poisoned: list[tuple[bytes, str | None, str]] = [
        (b"this is no JSON\n", None, "invalid_batch_line"),
        (b'{"custom_id": "cut", "method": "POST", "url"\n', None, "invalid_batch_line"),
        (b"\xff\xfe\xfa\n", None, "invalid_batch_line"),
        (b"[1, 2]\n", None, "invalid_batch_line"),
        (b"[" * 100_000 + b"\n", None, "invalid_batch_line"),
        (b'{"method": "POST", "url": "/v1/detect", "body": {}}\n', None, "invalid_batch_line"),
        (line("", good), None, "invalid_batch_line"),
        (line("half \ud800", good), None, "invalid_batch_line"),
        (line("x" * 513, good), None, "invalid_batch_line"),
        (line("number", 7), "number", "invalid_batch_line"),
        (line("get", good, method="GET"), "get", "invalid_batch_line"),
        (line("more", good, priority=1), "more", "invalid_batch_line"),
        (line("elsewhere", good, "/v1/embeddings"), "elsewhere", "wrong_endpoint"),
        (line("another", good, "/v1/pose"), "another", "wrong_endpoint"),
        (line("../../files", good, "/v1/files"), "../../files", "wrong_endpoint"),
        (line("stream", {**good, "stream": True}), "stream", "unsupported_parameter"),
        (line("unknown field", {**good, "colour": 1}), "unknown field", "invalid_request"),
        (line("no image", {"categories": ["dog"]}), "no image", "invalid_request"),
        (line("empty", detect_body(categories=[])), "empty", "empty_prompt"),
        (line("long", detect_body(categories=None, phrase="dog " * 200)), "long", "prompt_too_long"),
        (line("broken", detect_body(image=data_url(png[:20]))), "broken", "image_corrupt"),
        (line("text", detect_body(image=data_url(b"no image"))), "text", "unsupported_image"),
        (line("tiff", detect_body(image=data_url(pages.getvalue(), "image/tiff"))), "tiff", "unsupported_image"),
        (line("huge", detect_body(image=data_url(huge.getvalue()))), "huge", "image_too_large"),
        (line("file", detect_body(image="file-01a21e318d4da644a0c25a5d2109")), "file", "unknown_file"),
        (line("url", detect_body(image="http://127.0.0.1/x.png")), "url", "remote_image_refused"),
        (line("model", detect_body(model="gpt-9")), "model", "unknown_model"),
        (line("good-0", good), "good-0", "duplicate_custom_id"),
        (line("endless", detect_body(image="data:image/png;base64," + "A" * 3_000_000)), None, "body_too_large"),
    ]
    lines, expected = [line("good-0", good)], {}
    for place, (content, custom_id, code) in enumerate(poisoned):
        # Blank lines count for nothing.
        lines += [content, b"  \r\n", line(f"good-{place + 1}", good)]
        expected[len(lines) - 1 - lines.count(b"  \r\n")] = (custom_id, code)

    async with batch_gateway(redis_server, max_body_bytes=2_000_000) as gateway:
        with batch_worker(tmp_path / "worker", gateway):
            over = await until_over(gateway, await order(gateway, b"".join(lines).removesuffix(b"\n")))
        answers = await rows_of(gateway, over["output_file_id"])
        errors = await rows_of(gateway, over["error_file_id"])
    assert over["status"] == "completed"
    count = len(poisoned)
    assert over["request_counts"] == {"total": 2 * count + 1, "completed": count + 1, "failed": count}
    assert sorted(row["custom_id"] for row in answers) == sorted(f"good-{place}" for place in range(count + 1))
    assert {row["error"]["line"]: (row["custom_id"], row["error"]["code"]) for row in errors} == expected
    ids = [row["id"] for row in (*answers, *errors)]
    assert len(set(ids)) == len(ids)
    for row in errors:
        # The envelope of every other error of the API.
        Problem.model_validate(row["error"])
        assert row["response"] is None or row["response"]["body"]["code"] == row["error"]["code"]


def test_errors_of_lines_have_the_members_that_the_gateways_have() -> None:
    error = invalid_argument("invalid_batch_line", "It is no JSON.")
    members = Problem.from_error(error, "1").model_dump(exclude_none=True).keys()
    assert problem_of(invalid_argument("invalid_batch_line", "It is no JSON."), "1").keys() == members


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "empty_batch"), (b"\n \n\r\n", "empty_batch"), (b"{}\n" * 11, "too_many_lines")]
)
async def test_a_file_that_is_no_batch_fails_as_a_whole(
    redis_server: LiveRedis, tmp_path: Path, content: bytes, code: str
) -> None:
    async with batch_gateway(redis_server, batches={"max_lines": 10}) as gateway:
        with batch_worker(tmp_path / "worker", gateway):
            over = await until_over(gateway, await order(gateway, content))
    assert (over["status"], over["errors"]["data"][0]["code"]) == ("failed", code)
    assert over["failed_at"] is not None
    assert (over["output_file_id"], over["error_file_id"]) == (None, None)


async def test_what_is_no_order_is_refused(gateway: LiveGateway) -> None:
    file_id = await upload(gateway, line("a", detect_body()))
    picture = await gateway.http.post(
        "/v1/files", files={"file": ("a.png", encode_picture())}, data={"purpose": "vision"}
    )
    good = {"input_file_id": file_id, "endpoint": "/v1/detect", "completion_window": "24h"}
    for change, status, code in (
        ({"endpoint": "/v1/files"}, 400, "invalid_request"),
        ({"completion_window": "0h"}, 400, "invalid_request"),
        ({"completion_window": "8d"}, 400, "invalid_request"),
        ({"completion_window": 24}, 400, "invalid_request"),
        ({"metadata": {"a": 1}}, 400, "invalid_request"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "invalid_request"),
        ({"priority": "high"}, 400, "invalid_request"),
        ({"input_file_id": picture.json()["id"]}, 400, "invalid_request"),
        ({"input_file_id": "file-01a21e318d4da644a0c25a5d2109"}, 404, "unknown_file"),
        ({"superlink": {"webhook_url": "https://example.org/"}}, 400, "webhooks_disabled"),
    ):
        expect_problem(await gateway.http.post("/v1/batches", json=good | change), status, code)
    for path in ("/v1/batches/batch_01a21e318d4da644a0c25a5d2109", "/v1/batches/..%2f..", "/v1/batches/x"):
        assert (await gateway.http.get(path)).status_code == 404
    expect_problem(await gateway.http.get("/v1/batches/batch_1"), 404, "unknown_batch")
    expect_problem(await gateway.http.post("/v1/batches/batch_1/cancel"), 404, "unknown_batch")
    assert (await gateway.http.get("/v1/batches")).json()["data"] == []


async def test_a_deployment_without_batches_says_so(redis_server: LiveRedis) -> None:
    async with live_gateway(redis_url=redis_server.url) as gateway:
        expect_problem(await gateway.http.get("/v1/batches"), 501, "batches_disabled")
    async with live_gateway(batches=ENABLED) as gateway:
        expect_problem(await gateway.http.get("/v1/batches"), 501, "batches_disabled")


async def test_a_cancelled_batch_keeps_what_was_answered(worker: None, gateway: LiveGateway) -> None:
    gateway.workers.detection.script = lambda request: [0.1, detections([detection(0)])]
    made = await order(gateway, b"".join(line(f"line-{number}", detect_body()) for number in range(60)))
    while not gateway.workers.detection.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    response = await gateway.http.post(f"/v1/batches/{made['id']}/cancel")
    assert response.json()["status"] == "cancelling"
    assert (await gateway.http.post(f"/v1/batches/{made['id']}/cancel")).status_code in (200, 409)

    over = await until_over(gateway, made)
    assert (over["status"], over["completed_at"]) == ("cancelled", None)
    assert over["cancelled_at"] >= over["cancelling_at"]
    answers, errors = await rows_of(gateway, over["output_file_id"]), await rows_of(gateway, over["error_file_id"])
    assert answers
    assert sorted(row["custom_id"] for row in (*answers, *errors)) == sorted(f"line-{number}" for number in range(60))
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    expect_problem(await gateway.http.post(f"/v1/batches/{made['id']}/cancel"), 409, "batch_over")


async def test_what_is_not_answered_within_the_window_gets_an_error(worker: None, gateway: LiveGateway) -> None:
    gateway.workers.detection.script = lambda request: [0.2, detections([detection(0)])]
    lines = b"".join(line(f"line-{number}", detect_body()) for number in range(60))
    over = await until_over(gateway, await order(gateway, lines, completion_window="3s"))
    assert over["status"] == "expired"
    assert over["expired_at"] >= over["expires_at"]
    answers, errors = await rows_of(gateway, over["output_file_id"]), await rows_of(gateway, over["error_file_id"])
    assert len(answers) + len(errors) == 60
    assert len({row["custom_id"] for row in (*answers, *errors)}) == 60
    assert {row["error"]["code"] for row in errors} == {"batch_expired"}


async def test_an_input_that_is_deleted_meanwhile_fails_what_is_left(worker: None, gateway: LiveGateway) -> None:
    gateway.workers.detection.script = lambda request: [0.2, detections([detection(0)])]
    made = await order(gateway, b"".join(line(f"line-{number}", detect_body()) for number in range(30)))
    while not gateway.workers.detection.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await gateway.http.delete(f"/v1/files/{made['input_file_id']}")
    over = await until_over(gateway, made)
    errors = await rows_of(gateway, over["error_file_id"])
    assert over["request_counts"]["completed"] + len(errors) == 30
    assert {row["error"]["code"] for row in errors} == {"unknown_file"}


async def test_a_batch_is_its_keys_own_and_held_to_its_limits(redis_server: LiveRedis, tmp_path: Path) -> None:
    required = {"required": True, "limits": {"requests_per_minute": 0, "requests_per_day": 14}}
    async with batch_gateway(redis_server, keys=required) as gateway:
        (ada, record), (eve, _) = await new_key(redis_server.url), await new_key(redis_server.url)
        with batch_worker(tmp_path / "worker", gateway):
            made = await order(
                gateway,
                b"".join(line(f"line-{number}", detect_body()) for number in range(20)),
                headers=bearer(ada),
                completion_window="12s",
            )
            expect_problem(
                await gateway.http.get(f"/v1/batches/{made['id']}", headers=bearer(eve)), 404, "unknown_batch"
            )
            path = f"/v1/batches/{made['id']}/cancel"
            expect_problem(await gateway.http.post(path, headers=bearer(eve)), 404, "unknown_batch")
            assert (await gateway.http.get("/v1/batches", headers=bearer(eve))).json()["data"] == []
            assert (await gateway.http.get("/v1/batches")).status_code == 401
            # Two requests made the batch; the day's others are for its lines. Looking at it would cost some, too.
            kept = open_batches(gateway.workers.profile)
            while kept.find(record.id, made["id"]).outcome is None:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
            with redis_server.client() as redis:
                assert int(redis.get(f"superlink:limits:{record.id}:day") or 0) == 14
                redis.delete(f"superlink:limits:{record.id}:day")
            over = await look(gateway, made, bearer(ada))
            answers = await rows_of(gateway, over["output_file_id"], bearer(ada))
            errors = await rows_of(gateway, over["error_file_id"], bearer(ada))
    assert (over["status"], len(answers), len(errors)) == ("expired", 12, 8)
    assert {row["error"]["code"] for row in errors} == {"batch_expired"}


async def test_lines_give_way_to_live_requests(gateway: LiveGateway) -> None:
    """The workers' own requests, made by hand: while four live ones are in flight, one line may be, and no more."""
    gateway.workers.detection.script = lambda request: [1.0, detections([detection(0)])]

    async def ask(**headers: str) -> int:
        return (await gateway.http.post("/v1/detect", json=detect_body(), headers=headers)).status_code

    live = [asyncio.create_task(ask()) for _ in range(4)]
    await asyncio.sleep(0.3)
    first = asyncio.create_task(ask(**{"x-superlink-batch": "batch_1"}))
    await asyncio.sleep(0.2)
    refused = await gateway.http.post("/v1/detect", json=detect_body(), headers={"x-superlink-batch": "batch_1"})
    problem = expect_problem(refused, 429, "batch_gives_way")
    assert (problem["retryable"], refused.headers["retry-after"]) == (True, "1")
    assert await asyncio.gather(*live, first) == [200] * 5
    assert await ask(**{"x-superlink-batch": "batch_1"}) == 200


async def test_a_small_batch_does_not_wait_for_a_large_one(worker: None, gateway: LiveGateway) -> None:
    gateway.workers.detection.script = lambda request: [0.05, detections([detection(0)])]
    large = await order(gateway, b"".join(line(f"line-{number}", detect_body()) for number in range(300)))
    small = await order(gateway, line("only", detect_body()))
    await until_over(gateway, small, timeout_s=20)
    assert (await look(gateway, large))["status"] == "in_progress"
