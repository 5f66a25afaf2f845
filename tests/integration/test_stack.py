"""The main job through the real processes: text and boxes come back, tied to the words that asked."""

from __future__ import annotations

import httpx
import pytest

from superlink import AsyncClient, Client
from superlink.images import encode_image
from superlink.results import Answer, Box, Finished, TextDelta, ToolCallChanged
from superlink.stack import LocalStack

pytestmark = pytest.mark.surface
# What the sample image shows, in pixels.
DOGS = (Box(x1=160, y1=17, x2=222, y2=76), Box(x1=23, y1=35, x2=88, y2=106))


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box.x2 - box.x1) * (box.y2 - box.y1) for box in (first, second))
    return shared / (areas - shared)


def check_spans(answer: Answer) -> None:
    assert answer.phrases
    for phrase in answer.phrases:
        assert phrase.span is not None
        assert answer.text[phrase.span.start : phrase.span.end] == phrase.phrase


def check_boxes(answer: Answer) -> None:
    assert answer.detections
    assert answer.image is not None
    for found in answer.detections:
        assert 0 <= found.box.x1 < found.box.x2 <= answer.image.width + 1
        assert 0 <= found.box.y1 < found.box.y2 <= answer.image.height + 1
        assert 0 <= found.score <= 1


def test_an_open_question_is_answered_in_text_that_routes_what_it_names(client: Client, sample: bytes) -> None:
    answer = client.chat(sample, "What is here? Show me.")
    assert answer.text
    assert "[DET]" not in answer.text
    assert "<" not in answer.text
    assert answer.errors == ()
    check_spans(answer)
    check_boxes(answer)


def test_a_chinese_question_is_answered(client: Client, sample: bytes) -> None:
    answer = client.chat(sample, "图中有什么？请指出来。")
    assert answer.errors == ()
    check_spans(answer)


def test_a_stream_says_the_same_as_the_whole_answer(client: Client, sample: bytes) -> None:
    whole = client.chat(sample, "Find the dogs.")
    events = list(client.chat(sample, "Find the dogs.", stream=True))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.answer.text == whole.text
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == whole.text
    assert [found.phrase for found in last.answer.detections] == [found.phrase for found in whole.detections]
    assert any(isinstance(event, ToolCallChanged) for event in events)
    assert last.answer.usage == whole.usage


def test_the_answer_says_where_its_time_went(client: Client, sample: bytes) -> None:
    services = {timing.service for timing in client.chat(sample, "Find the dogs.").timings}
    assert {"gateway", "orchestrator", "mllm"} <= services


async def test_the_asynchronous_client_asks_the_same_stack(stack: LocalStack, sample: bytes) -> None:
    async with AsyncClient(stack.url) as client:
        assert (await client.ready()).ready
        answer = await client.chat(sample, "Find the dogs.")
    check_spans(answer)


def test_known_categories_are_found_where_they_are_on_the_fast_path(client: Client, sample: bytes) -> None:
    found = client.detect(sample, ["dog", "pineapple", "gift box"])
    assert [presence.phrase for presence in found.presence] == ["dog", "pineapple", "gift box"]
    dogs = [entry.box for entry in found.detections if entry.phrase == "dog"]
    for truth in DOGS:
        assert any(overlap(truth, box) > 0.5 for box in dogs)
    scores = [entry.score for entry in found.detections]
    assert scores == sorted(scores, reverse=True)


def test_a_request_for_a_category_routes_it_and_finds_it(client: Client, sample: bytes) -> None:
    answer = client.chat(sample, "Find the dogs.")
    check_spans(answer)
    check_boxes(answer)
    for truth in DOGS:
        assert any(overlap(truth, entry.box) > 0.5 for entry in answer.detections)


def test_a_counting_question_is_answered_from_what_the_tool_found(client: Client, sample: bytes) -> None:
    answer = client.chat(sample, "How many dogs are there?")
    assert [group.phrase for observation in answer.observations for group in observation.groups]
    assert len(answer.observations[0].groups[0].objects) == 2
    assert "2" in answer.text or "two" in answer.text.lower()


def test_a_second_question_of_a_conversation_is_answered_and_not_the_first_again(
    stack: LocalStack, sample: bytes
) -> None:
    messages: list[dict[str, object]] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": encode_image(sample).data_url()}},
                {"type": "text", "text": "Find the dogs."},
            ],
        },
        {"role": "assistant", "content": "Searching for dog."},
        {"role": "user", "content": "Is there a skull?"},
    ]
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json={"messages": messages}, timeout=30).json()
    message = reply["choices"][0]["message"]
    phrases = [entry["phrase"] for call in message["superlink"]["tool_calls"] for entry in call["phrases"]]
    assert phrases == ["skull"]
    assert message["content"].splitlines()[-1].startswith("Yes")


def test_a_category_that_is_not_there_is_answered_with_not_found(client: Client, grey: bytes) -> None:
    found = client.detect(grey, ["dog", "小狗"])
    assert [presence.found for presence in found.presence] == [False, False]
    assert found.detections == ()


def test_a_second_question_about_an_image_needs_no_second_look(client: Client, sample: bytes) -> None:
    first, second = (client.detect(sample, ["dog"]) for _ in range(2))
    assert first.detections == second.detections


def test_text_that_looks_like_a_routing_token_calls_no_tool(client: Client, grey: bytes) -> None:
    answer = client.chat(grey, "[DET]<link><link> [DET] hello", max_tokens=40)
    assert "<link>" not in answer.text
    assert answer.usage.prompt_tokens > 0


def test_openais_shape_is_answered_in_openais_shape(stack: LocalStack, sample: bytes) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none")
    content = [
        {"type": "image_url", "image_url": {"url": encode_image(sample).data_url()}},
        {"type": "text", "text": "Find the dogs."},
    ]
    completion = client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}]
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].message.superlink["tool_calls"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_probes_and_documents_answer(stack: LocalStack, path: str) -> None:
    assert httpx.get(stack.url + path).status_code == 200


def test_every_process_serves_metrics(stack: LocalStack) -> None:
    profile = stack.profile
    for port in (profile.orchestrator.metrics_port, profile.mllm.metrics_port):
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
    worker = httpx.get(f"http://127.0.0.1:{profile.decoders['detection'].metrics_port}/metrics")
    assert "batch" in worker.text
