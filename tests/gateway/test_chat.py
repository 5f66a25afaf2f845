import asyncio
import json
from typing import Any

import grpc
import httpx
import openai
import pytest
from live_gateway import LiveGateway, live_gateway
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import detection, detections, find_one_object_a_group, finish, group, observe, text, usage

from superlink.errors import SuperlinkError
from superlink.v1 import mllm_pb2

MODEL = "superlink-scripted"


def one_dog(gateway: LiveGateway) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(30, 16, 9), finish()]]


def chunks_of(body: str) -> list[dict[str, Any]]:
    events = body.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


async def test_an_answer_has_openais_shape_and_the_extension(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where is the dog?", png, model=MODEL))

    assert response.status_code == 200
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "Here is the dog.")
    assert answer["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 9,
        "total_tokens": 39,
        "prompt_tokens_details": {"image_tokens": 16},
    }
    extension = choice["message"]["superlink"]
    assert extension["rounds"] == 0
    assert extension["image"] == {"width": 200, "height": 100}
    [call] = extension["tool_calls"]
    assert (call["id"], call["tool"], call["status"], call["error"]) == ("call_0", "detection", "completed", None)
    [phrase] = call["phrases"]
    assert phrase == {
        "phrase": "dog",
        "span": {"start": 12, "end": 15},
        "route": "[DET]",
        "log_probability": -0.25,
        "found": True,
        "score": 0.9,
        "detections": [{"bbox": [20.0, 10.0, 40.0, 40.0], "score": 0.9}],
    }
    services = {entry["service"] for entry in extension["timings"]}
    assert services == {"mllm", "detection", "wire", "orchestrator", "gateway"}
    assert "gateway_total;dur=" in response.headers["server-timing"]


async def test_an_answer_about_poses_has_the_keypoints_of_every_find(gateway: LiveGateway, png: bytes) -> None:
    written = [text("The person: nose."), group("person", 4, "[POSE_OBJECT]"), group("nose", 12, "[POSE]")]
    gateway.workers.mllm.rounds = [[*written, usage(30, 16, 9), finish()]]

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where is the nose?", png))

    [call] = response.json()["choices"][0]["message"]["superlink"]["tool_calls"]
    person, nose = call["phrases"]
    assert (call["tool"], person["found"], nose["phrase"], nose["detections"]) == ("pose", True, "nose", [])
    [found] = person["detections"]
    assert found["keypoints"] == [{"name": "nose", "x": 0.0, "y": 5.0, "score": 0.8}]


async def test_the_model_gets_the_image_as_sent_and_the_options(gateway: LiveGateway, png: bytes) -> None:
    body = chat_body(
        "Where?",
        png,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_completion_tokens=11,
        stop=["!"],
        superlink={"max_rounds": 0, "score_threshold": 0.25, "max_detections": 5},
    )
    gateway.workers.mllm.rounds = [[group("dog"), observe()]]

    response = await gateway.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"})

    assert response.headers["x-request-id"] == "mine"
    # The model wanted another round, which the request did not allow.
    assert response.json()["choices"][0]["finish_reason"] == "length"
    [request] = gateway.workers.mllm.generate_requests
    assert request.request_id == "mine"
    assert request.messages[0].parts[0].image.encoded == png
    assert request.messages[0].parts[1].text == "Where?"
    assert request.sampling.temperature == 0.5
    assert (request.sampling.seed, request.sampling.max_new_tokens, list(request.sampling.stop)) == (7, 11, ["!"])
    [decoded] = gateway.workers.detection.requests
    assert (decoded.detection.score_threshold, decoded.detection.max_detections) == (0.25, 5)
    assert decoded.image.encoded == png


async def test_images_can_be_uploaded(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)
    request = {"messages": [{"role": "user", "content": "Where is the dog?"}]}

    response = await gateway.http.post(
        "/v1/chat/completions", data={"request": json.dumps(request)}, files={"image": ("scene.png", png)}
    )

    assert response.status_code == 200
    assert gateway.workers.detection.requests[0].image.encoded == png


async def test_the_size_is_that_of_the_upright_image(gateway: LiveGateway) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encode_picture("JPEG", (320, 240), exif=exif)

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Hello?", picture))

    assert response.json()["choices"][0]["message"]["superlink"]["image"] == {"width": 240, "height": 320}


async def test_observations_are_reported_with_their_place(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.9), detection(0, 0.8, (0, 0, 200, 100))])
    ]
    gateway.workers.mllm.rounds = [[text("小狗"), group("小狗", 0), observe()], [text("两只。"), finish()]]

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("有几只小狗?", png))

    message = response.json()["choices"][0]["message"]
    assert message["content"] == "小狗\n两只。"
    extension = message["superlink"]
    assert extension["rounds"] == 1
    [observation] = extension["observations"]
    assert observation["position"] == 2
    [seen] = observation["groups"]
    assert (seen["phrase"], seen["failed"]) == ("小狗", False)
    assert seen["objects"][1] == {"box": [0, 0, 1000, 1000], "score": 0.8}


async def test_an_answer_sent_back_is_what_the_model_wrote(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [
        [text("Look: dog"), group("dog", 6), text("."), observe()],
        [text("One dog."), finish()],
    ]
    body = chat_body("How many dogs?", png)
    first = await gateway.http.post("/v1/chat/completions", json=body)
    body["messages"] += [first.json()["choices"][0]["message"], {"role": "user", "content": "Sure?"}]

    second = await gateway.http.post("/v1/chat/completions", json=body)

    assert second.status_code == 200
    replayed = gateway.workers.mllm.generate_requests[-2].messages[1]
    assert replayed.role == mllm_pb2.ROLE_ASSISTANT
    assert replayed.parts[:4] == gateway.workers.mllm.generate_requests[1].messages[1].parts[:4]
    assert [part.WhichOneof("part") for part in replayed.parts] == [
        "text",
        "routed_phrase",
        "text",
        "observation",
        "text",
    ]
    assert replayed.parts[4].text == "One dog."


async def test_a_stream_has_openais_shape(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)
    body = chat_body("Where is the dog?", png, stream=True, stream_options={"include_usage": True})

    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *parts, last, total = chunks
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == "Here is the dog."
    calls = [call for part in parts for call in part["choices"][0]["delta"].get("superlink", {}).get("tool_calls", [])]
    assert [(call["id"], call["status"]) for call in calls] == [("call_0", "running"), ("call_0", "completed")]
    assert calls[1]["phrases"][0]["detections"] == [{"bbox": [20.0, 10.0, 40.0, 40.0], "score": 0.9}]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["delta"]["superlink"]["rounds"] == 0
    assert all(part["choices"][0]["finish_reason"] is None for part in parts)
    assert (total["choices"], total["usage"]["total_tokens"]) == ([], 39)


async def test_text_is_streamed_while_it_is_written(gateway: LiveGateway, png: bytes) -> None:
    go_on = asyncio.Event()
    gateway.workers.mllm.rounds = [[text("alpha"), go_on, text(" omega"), finish()]]
    seen = ""

    async with gateway.http.stream(
        "POST", "/v1/chat/completions", json=chat_body("Hello?", png, stream=True)
    ) as response:
        async for line in response.aiter_lines():
            seen += line
            if "alpha" in line:
                assert "omega" not in seen
                go_on.set()

    assert "omega" in seen


async def test_a_dead_tool_is_an_error_beside_the_text(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)
    await gateway.workers.detection_server.stop()

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where is the dog?", png))

    assert response.status_code == 200
    message = response.json()["choices"][0]["message"]
    assert message["content"] == "Here is the dog."
    [call] = message["superlink"]["tool_calls"]
    assert call["status"] == "failed"
    assert (call["error"]["code"], call["error"]["service"]) == ("decoder_unavailable", "detection")
    assert call["error"]["status"] == 503
    assert call["error"]["request_id"] == response.headers["x-request-id"]
    assert call["phrases"][0]["span"] == {"start": 12, "end": 15}


async def test_an_unknown_route_is_an_error_beside_the_text(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("A dog."), group("dog", 2, "[TABLE]"), finish()]]

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Draw a dog", png))

    [call] = response.json()["choices"][0]["message"]["superlink"]["tool_calls"]
    assert (call["status"], call["error"]["code"], call["tool"]) == ("failed", "unknown_tool", "")


@pytest.mark.faults
async def test_a_dead_model_is_a_problem(gateway: LiveGateway, png: bytes) -> None:
    await gateway.http.get("/v1/models")
    await gateway.workers.mllm_server.stop()

    for stream in (False, True):
        response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", png, stream=stream))
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["retry-after"] == "1"
        assert (response.json()["service"], response.json()["retryable"]) == ("mllm", True)


@pytest.mark.faults
async def test_a_model_that_dies_while_streaming_ends_the_stream_with_an_error(
    gateway: LiveGateway, png: bytes
) -> None:
    broken = SuperlinkError("internal", "It broke.", status=grpc.StatusCode.INTERNAL)
    gateway.workers.mllm.rounds = [[text("Half of an"), broken]]

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", png, stream=True))

    assert response.status_code == 200
    chunks = chunks_of(response.text)
    assert chunks[1]["choices"][0]["delta"]["content"] == "Half of an"
    assert chunks[-1]["error"]["code"] == "internal"
    assert chunks[-1]["error"]["message"] == "It broke."


@pytest.mark.faults
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_model(gateway: LiveGateway, png: bytes, stream: bool) -> None:
    gateway.workers.mllm.rounds = [[text("Once"), asyncio.Event()]]

    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=chat_body("Tell", png, stream=stream), timeout=0.3)

    await asyncio.wait_for(gateway.workers.mllm.cancelled.wait(), 2)
    for _ in range(100):
        exposition = (await gateway.http.get("/metrics")).text
        if 'superlink_gateway_disconnects_total{path="/v1/chat/completions"} 1.0' in exposition:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the disconnect was not counted")


@pytest.mark.faults
async def test_a_client_that_leaves_before_the_first_word_cancels_the_model(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[asyncio.Event()]]

    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=chat_body("Tell", png, stream=True), timeout=0.3)

    await asyncio.wait_for(gateway.workers.mllm.cancelled.wait(), 2)


async def test_the_clients_deadline_holds(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Once"), asyncio.Event()]]

    response = await gateway.http.post(
        "/v1/chat/completions", json=chat_body("Tell", png), headers={"x-request-timeout-s": "0.3"}
    )

    assert response.status_code == 504
    assert response.json()["code"] == "deadline_exceeded"


@pytest.mark.surface
async def test_openais_client_asks(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)
    messages: Any = chat_body("Where is the dog?", png)["messages"]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        completion = await client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, extra_body={"superlink": {"score_threshold": 0.3}}
        )
        models = [model.id async for model in client.models.list()]

    assert models == [MODEL]
    assert completion.choices[0].message.content == "Here is the dog."
    assert completion.usage is not None
    assert completion.usage.total_tokens == 39
    extension: Any = completion.choices[0].message.model_extra
    assert extension["superlink"]["tool_calls"][0]["phrases"][0]["found"]


@pytest.mark.surface
async def test_openais_client_streams(gateway: LiveGateway, png: bytes) -> None:
    one_dog(gateway)
    gateway.workers.detection.script = find_one_object_a_group
    messages: Any = chat_body("Where is the dog?", png)["messages"]
    words, statuses, totals = "", [], []
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.usage is not None:
                totals.append(chunk.usage.total_tokens)
            for choice in chunk.choices:
                words += choice.delta.content or ""
                extension = (choice.delta.model_extra or {}).get("superlink", {})
                statuses += [call["status"] for call in extension.get("tool_calls", [])]

    assert (words, statuses, totals) == ("Here is the dog.", ["running", "completed"], [39])


@pytest.mark.surface
async def test_openais_client_raises_what_the_gateway_says(gateway: LiveGateway, png: bytes) -> None:
    messages: Any = chat_body("Where?", png)["messages"]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="gpt-4o", messages=messages)
        broken = SuperlinkError("internal", "It broke.", status=grpc.StatusCode.INTERNAL)
        gateway.workers.mllm.rounds = [[text("Half"), broken]]
        with pytest.raises(openai.APIError, match="It broke"):
            async for _ in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
                pass

    assert unknown.value.code == "unknown_model"


async def test_several_images_keep_their_places(gateway: LiveGateway, png: bytes) -> None:
    second = encode_picture("WEBP")
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": data_url(png)}},
        {"type": "text", "text": "with"},
        {"type": "image_url", "image_url": {"url": data_url(second, "image/webp")}},
    ]
    gateway.workers.mllm.rounds = [[group("dog"), finish()]]

    await gateway.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})

    [request] = gateway.workers.mllm.generate_requests
    kinds = [part.WhichOneof("part") for part in request.messages[0].parts]
    assert kinds == ["text", "image", "text", "image"]
    assert gateway.workers.detection.requests[0].image.encoded == second


@pytest.mark.faults
async def test_a_gateway_that_stops_ends_its_streams_with_an_error(png: bytes) -> None:
    async with live_gateway(drain_timeout_s=1) as gateway:
        gateway.workers.mllm.rounds = [[text("Once upon"), asyncio.Event()]]
        events = ""
        body = chat_body("Tell", png, stream=True)
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                events += f"{line}\n"
                if "Once upon" in line:
                    gateway.server.should_exit = True

    assert chunks_of(events)[-1]["error"]["code"] == "shutting_down"
