"""A page that stays open all day: what is no longer shown is forgotten."""

import asyncio
from collections.abc import Callable

from gateway_thread import GatewayThread
from playground_page import PATIENCE_S, PlaygroundPage
from request_bodies import encode_picture
from scripted_workers import detection, detections, finish, group, made_images, text, usage

MOST_EXCHANGES = 30
# Sends what the form of a tab says, so many times, one after the other.
_SEND = """
const [mode, times, done] = arguments;
const form = document.querySelector(`#panel-${mode} form`);
const isOver = () => {
  const last = [...document.querySelectorAll(`#panel-${mode} article.run`)].at(-1);
  return last && !last.dataset.seen && last.dataset.status !== "running" ? last : null;
};
(async () => {
  for (let sent = 0; sent < times; sent++) {
    if (mode === "chat") document.querySelector("#chat-text").value = `Question ${sent}?`;
    form.requestSubmit();
    let last;
    while (!(last = isOver())) await new Promise((resolve) => setTimeout(resolve, 5));
    last.dataset.seen = "true";
  }
})().then(() => done(null), (error) => done(String(error)));
"""
# By the page itself: what a test holds of the page stays in the browser's memory.
_PRESS = """
const named = [...document.querySelectorAll("button")].filter((node) => node.innerText.trim() === arguments[0]);
const shown = named.find((node) => node.checkVisibility());
shown?.click();
return Boolean(shown);
"""
_LISTEN = """
const original = window.fetch;
window.fetch = (url, options) => {
  window.sent = options?.body;
  return original(url, options);
};
"""
_POINT = """
document.querySelector(".finding-item").dispatchEvent(new PointerEvent("pointerenter", { pointerType: "mouse" }));
document.querySelector(".finding-name").click();
"""


def press(page: PlaygroundPage, name: str) -> None:
    page.wait(lambda: page.script(_PRESS, name))


def send(page: PlaygroundPage, mode: str, times: int) -> None:
    page.driver.set_script_timeout(120)
    assert page.driver.execute_async_script(_SEND, mode, times) is None


def alive(page: PlaygroundPage, module: str, name: str) -> int:
    """How many objects of a class of the page are in the browser's memory, after it was tidied up."""
    expression = f"import(new URL('playground/{module}', document.baseURI)).then((module) => module.{name}.prototype)"
    evaluated = page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": expression, "awaitPromise": True})
    page.driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    query = {"prototypeObjectId": evaluated["result"]["objectId"], "objectGroup": "counted"}
    found = page.driver.execute_cdp_cmd("Runtime.queryObjects", query)
    of_all = {"objectId": found["objects"]["objectId"], "functionDeclaration": "function () { return this.length; }"}
    counted = page.driver.execute_cdp_cmd("Runtime.callFunctionOn", of_all)
    # The list of them would keep them alive.
    page.driver.execute_cdp_cmd("Runtime.releaseObjectGroup", {"objectGroup": "counted"})
    return int(counted["result"]["value"])


def test_a_tab_keeps_its_last_answer_alone(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [detections([detection(0), detection(0, 0.8)])]
    gateway.workers.diffusion.script = lambda request: [made_images(encode_picture(), encode_picture())]
    page.choose_tab("detect")
    page.drop_picture(png)
    page.write("#detect-names", "dog")
    send(page, "detect", 8)
    # What was pointed at when it was replaced is no reason to keep it.
    page.script(_POINT)
    send(page, "detect", 2)
    assert len(gateway.workers.detection.requests) == 10
    assert alive(page, "run.js", "Run") == 1
    assert alive(page, "run_view.js", "RunView") == 1

    page.choose_tab("generate")
    page.write("#generate-prompt", "a cat")
    send(page, "generate", 6)
    page.choose_tab("detect")
    # One for each tab, and the picture that was dropped.
    assert alive(page, "run.js", "Run") == 2
    assert alive(page, "picture.js", "Picture") == 3


def test_a_conversation_holds_so_many_questions(open_page: Callable[[str], PlaygroundPage], png: bytes) -> None:
    with GatewayThread(request_timeout_s=PATIENCE_S, max_prompt_characters=100_000) as gateway:
        ask_on_and_on(gateway, open_page(gateway.url), png)


def ask_on_and_on(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("A dog"), group("dog", 2), text("."), usage(9, 4, 3), finish()]]
    page.drop_picture(png)
    send(page, "chat", 2)
    assert page.all(".forgotten") == []

    send(page, "chat", MOST_EXCHANGES + 1)

    assert page.text(".forgotten") == f"A conversation holds {MOST_EXCHANGES} questions; the first ones are forgotten."
    assert len(page.texts("#panel-chat article.run")) == MOST_EXCHANGES
    assert alive(page, "run.js", "Run") == MOST_EXCHANGES
    # The next one is asked with what the conversation holds, and still about the picture.
    asked = gateway.workers.mllm.generate_requests[-1].messages
    assert len(asked) == 2 * MOST_EXCHANGES - 1
    assert asked[0].parts[0].WhichOneof("part") == "image"

    press(page, "New conversation")
    assert page.all("#panel-chat article.run, .forgotten") == []
    assert alive(page, "run.js", "Run") == 0


def test_what_failed_is_forgotten_when_it_is_tried_again(gateway: GatewayThread, page: PlaygroundPage) -> None:
    gateway.workers.mllm.rounds = [[asyncio.Event()]]
    for _ in range(3):
        page.ask("Hello")
        press(page, "Cancel")
        page.wait_for_end("cancelled")
    gateway.workers.mllm.rounds = [[text("Hello."), finish()]]
    for _ in range(3):
        press(page, "Try again")
        page.wait_for_end()
    assert page.texts(".answer") == ["Hello."] * 3
    assert alive(page, "run_view.js", "RunView") == 3


def test_of_all_drawings_only_the_last_goes_along(gateway: GatewayThread, page: PlaygroundPage) -> None:
    drawn = [encode_picture(size=(64, side)) for side in (32, 48, 64)]
    gateway.workers.diffusion.script = lambda request: [made_images(drawn[len(gateway.workers.diffusion.requests) - 1])]
    gateway.workers.mllm.rounds = [[text("A cat"), group("cat", 2, "[GEN]"), text("."), usage(9, 0, 5), finish()]]
    send(page, "chat", 3)
    page.script(_LISTEN)
    gateway.workers.mllm.rounds = [[text("A cat."), finish()]]

    page.ask("What is it?")
    page.wait_for_end()

    sent = page.script("return window.sent")
    assert sent.count("b64_json") == 1
    messages = gateway.workers.mllm.generate_requests[-1].messages
    parts = [part for message in messages for part in message.parts]
    assert [part.image.encoded for part in parts if part.HasField("image")] == [drawn[2]]
