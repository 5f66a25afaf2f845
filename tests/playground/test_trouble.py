"""What goes wrong, what takes long, and what a person stops."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
from api_key_maker import REQUIRED, new_key
from gateway_thread import GatewayThread
from live_redis import live_redis
from playground_page import PATIENCE_S, PlaygroundPage
from relay import relay
from request_bodies import encode_picture
from scripted_workers import detections, finish, group, made_images, progress, text, usage

from superlink.errors import SuperlinkError


def full_queue() -> SuperlinkError:
    return SuperlinkError(
        "queue_full",
        "The queue of the mllm service is full.",
        status=grpc.StatusCode.RESOURCE_EXHAUSTED,
        service="mllm",
        retry_after_ms=2500,
    )


def test_an_error_says_what_happened_and_what_to_do(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[full_queue()]]
    page.drop_picture(png)

    page.ask("What is here?")
    page.wait_for_end("failed")

    card = page.one("[role=alert].problem")
    assert "queue_full" in card.text
    assert "The queue of the mllm service is full." in card.text
    assert "Try again in 3 s." in card.text
    assert "Status 429" in card.text
    request_id = gateway.workers.mllm.generate_requests[0].request_id
    assert request_id in card.text

    gateway.workers.mllm.rounds = [[text("A dog."), usage(30, 16, 9), finish()]]
    page.press("Try again")
    page.wait_for_end()
    assert page.texts(".answer") == ["A dog."]
    assert page.all(".problem") == []


def test_an_error_in_the_middle_keeps_what_was_there(gateway: GatewayThread, page: PlaygroundPage) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the"), full_queue()]]

    page.ask("What is here?")
    page.wait_for_end("failed")

    assert page.text(".answer") == "Here is the"
    assert "queue_full" in page.text(".problem")


def test_a_tool_that_fails_leaves_the_answer(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(9, 4, 3), finish()]]
    lost = SuperlinkError("out_of_memory", "No memory left.", status=grpc.StatusCode.INTERNAL, service="detection")
    gateway.workers.detection.script = lambda request: [lost]
    page.drop_picture(png)

    page.ask("Where is the dog?")
    page.wait_for_end()

    assert page.text(".answer") == "Here is the dog."
    assert page.labels(".phrase") == ["dog: the tool failed"]
    assert "detection failed out_of_memory" in page.text(".findings .problem")


def test_a_request_that_is_refused_names_the_reason(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    page.choose_tab("detect")
    page.press("Detect")
    assert page.focused().get_attribute("id") == "file"
    assert page.text("#file-problem") == "Choose an image first."

    page.drop_picture(png)
    page.write("#detect-names", ",".join(f"thing {number}" for number in range(11)))
    page.press("Detect")
    page.wait_for_end("failed")

    assert "too_many_phrases" in page.text(".problem")
    assert "the limit is 10" in page.text(".problem")


def test_cancel_stops_the_work(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    never = asyncio.Event()
    gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), never, finish()]]
    page.drop_picture(png)
    page.ask("Where is the dog?")
    page.wait(lambda: page.texts(".answer") == ["Here is the dog"])

    page.press("Cancel")

    page.wait_for_end("cancelled")
    gateway.wait_for(gateway.workers.mllm.cancelled, PATIENCE_S)
    assert page.text(".answer") == "Here is the dog"
    assert page.text(".run .state").startswith("Cancelled after")
    assert page.all(".stop") == []

    # What was cancelled is no part of the conversation.
    gateway.workers.mllm.rounds = [[text("Yes."), usage(9, 4, 3), finish()]]
    page.ask("Are you there?")
    page.wait_for_end()
    assert len(gateway.workers.mllm.generate_requests[-1].messages) == 1


def test_cancel_stops_a_tool_that_draws(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    never = asyncio.Event()
    gateway.workers.diffusion.script = lambda request: [progress(3, 20), never, made_images(encode_picture())]
    page.drop_picture(png)
    page.choose_tab("generate")
    page.write("#generate-prompt", "a cat")
    page.press("Generate")
    page.wait(lambda: page.text("#panel-generate .state").startswith("Step 3 of 20"))
    # What is drawn is another picture than the one that was dropped.
    assert page.all("#picture, #remove-picture") == []

    page.press("Cancel")

    page.wait_for_end("cancelled")
    gateway.wait_for(gateway.workers.diffusion.cancelled, PATIENCE_S)
    assert "scene.png" in (page.one("#picture").get_attribute("alt") or "")
    assert page.texts("#remove-picture") == ["Remove"]


def test_a_slow_answer_shows_what_there_is(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    found, written = asyncio.Event(), asyncio.Event()
    gateway.workers.mllm.rounds = [
        [
            text("Here is"),
            0.2,
            text(" the dog"),
            group("dog", 12),
            text(" and"),
            written,
            text(" that is all."),
            finish(),
        ]
    ]
    gateway.workers.detection.script = lambda request: [found, detections([], 1, absent=[0])]
    page.drop_picture(png)
    page.ask("Where is the dog?")

    page.wait(lambda: page.texts(".answer") == ["Here is the dog and"])
    assert page.text(".run .state").startswith("Answering")
    # A call is sent as soon as the next group belongs elsewhere or the text ends.
    gateway.release(written)
    page.wait(lambda: page.labels(".phrase") == ["dog: detection is looking"])
    assert page.text(".answer") == "Here is the dog and that is all."
    gateway.release(found)
    page.wait_for_end()
    assert page.labels(".phrase") == ["dog: not in the image"]
    [row] = [text for text in page.texts(".timeline tbody tr") if "[DET]" in text]
    assert "detection" in row
    assert "dog" in row


def test_a_slow_network_streams(gateway: GatewayThread, page: PlaygroundPage) -> None:
    words = [f"word{number} " for number in range(40)]
    gateway.workers.mllm.rounds = [[*(text(word) for word in words), usage(9, 4, 40), finish()]]
    page.driver.set_network_conditions(offline=False, latency=300, download_throughput=4000, upload_throughput=4000)
    try:
        page.ask("Talk.")
        early = page.wait(lambda: "".join(page.texts(".answer")))
        page.wait_for_end()
    finally:
        page.driver.delete_network_conditions()
    assert len(early) < len("".join(words))
    assert page.text(".answer").strip() == "".join(words).strip()


def test_a_gateway_that_is_gone_is_told_as_such(open_page: Callable[[str], PlaygroundPage]) -> None:
    with GatewayThread() as gateway:
        page = open_page(gateway.url)
    page.ask("Are you there?")
    page.wait_for_end("failed")

    assert "connection_lost" in page.text(".problem")
    assert "Check that the gateway runs" in page.text(".problem")


def test_a_connection_that_breaks_off_keeps_what_had_come(
    gateway: GatewayThread, open_page: Callable[[str], PlaygroundPage]
) -> None:
    never = asyncio.Event()
    gateway.workers.mllm.rounds = [[text("Here is the"), never, finish()]]
    with relay(gateway.url) as between:
        page = open_page(between.url)
        page.ask("What is here?")
        page.wait(lambda: page.texts(".answer") == ["Here is the"])

        between.break_all()
        page.wait_for_end("failed")
        assert "connection_lost" in page.text(".problem")
        assert "broke off in the middle" in page.text(".problem")
        assert page.text(".answer") == "Here is the"
        gateway.wait_for(gateway.workers.mllm.cancelled, PATIENCE_S)

        gateway.workers.mllm.rounds = [[text("A dog."), finish()]]
        page.press("Try again")
        page.wait_for_end()
        assert page.texts(".answer") == ["A dog."]


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(
    open_page: Callable[[str], PlaygroundPage], tmp_path: Path
) -> None:
    with live_redis(tmp_path) as redis, GatewayThread(redis_url=redis.url, keys=REQUIRED) as gateway:
        key, _ = asyncio.run(new_key(redis.url))
        page = open_page(gateway.url)
        page.wait(lambda: page.text("#key-button").split() == ["API", "key", "needed"])
        page.ask("Hello")
        page.wait_for_end("failed")
        assert "missing_api_key" in page.text(".problem")

        page.press("Enter an API key")
        page.write("#key-input", key)
        page.press("Use this key")
        page.press("Try again")
        page.wait_for_end()

        assert page.text(".answer") == "Nothing to say."
        assert page.text("#key-button").split() == ["API", "key", "set"]
        stored = page.script("return [JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage})]")
        assert key not in stored[0]
        assert key in stored[1]
        page.one("#key-button").click()
        page.press("Forget it")
        assert key not in page.script("return JSON.stringify({...sessionStorage})")


def test_a_tool_that_is_not_deployed_says_so(open_page: Callable[[str], PlaygroundPage]) -> None:
    with GatewayThread(without=["diffusion"]) as gateway:
        page = open_page(gateway.url)
        page.wait(lambda: "Draw a cat beside a pine tree." not in page.texts("#panel-chat .example"))
        page.choose_tab("generate")
        assert page.text("#panel-generate .notice") == "This deployment has no diffusion service, which this tab needs."

        page.write("#generate-prompt", "a cat")
        page.press("Generate")
        page.wait_for_end("failed")
        assert "unknown_tool" in page.text(".problem")
