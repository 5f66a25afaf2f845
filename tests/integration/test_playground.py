"""The playground against the real stack: every tool does what its examples promise, and trouble is told as it is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "playground"))

from chromium import chromium
from playground_page import PlaygroundPage

from superlink.stack import LocalStack

pytestmark = pytest.mark.surface


PHONE = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def page(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundPage]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        page = PlaygroundPage(driver, stack.url)
        page.wait(lambda: page.all("#deployment[data-state=ready]"))
        yield page
        assert page.complaints() == []


def try_example(page: PlaygroundPage, tab: str, name: str) -> None:
    page.choose_tab(tab)
    # The example's image is loaded first; until then the answer before stays.
    page.script("for (const run of document.querySelectorAll('article.run')) run.classList.add('before')")
    page.press(name, f"#panel-{tab} .example")
    page.one("article.run:not(.before)")
    page.wait_for_end()


def draw(page: PlaygroundPage, words: str, steps: int, count: int = 1) -> None:
    page.choose_tab("generate")
    page.write("#generate-prompt", words)
    page.write("#generate-steps", str(steps))
    page.one("#generate-count").send_keys(str(count))
    page.press("Generate")


@pytest.fixture
def cancelled(stack: LocalStack) -> Callable[[], float]:
    """How many drawings the worker has given up because nobody waits for them."""
    address = f"http://127.0.0.1:{stack.profile.decoders['diffusion'].metrics_port}/metrics"

    def count() -> float:
        line = re.search(
            r'^superlink_worker_requests_total{outcome="cancelled".*} (.+)$', httpx.get(address).text, re.M
        )
        return float(line[1]) if line else 0.0

    return count


def finds(page: PlaygroundPage, kind: str) -> list[str]:
    """The names of what is drawn on the picture, one an object."""
    labels = [label or "" for label in page.labels("#shapes .find")]
    return [found[1] for label in labels if (found := re.match(rf"(.+), {kind} \d+ of \d+, score", label))]


def test_a_chat_example_ends_in_boxes_and_masks(page: PlaygroundPage) -> None:
    try_example(page, "chat", "Find the butterflies and segment the cow.")
    assert {"butterfly", "cow"} <= set(re.findall(r"\w+", page.text(".answer")))
    page.wait(lambda: finds(page, "box") == ["butterfly", "butterfly"])
    page.wait(lambda: finds(page, "mask") == ["cow"])
    tokens = page.texts(".timeline .token")
    assert {"[DET]", "[SEG]"} <= set(tokens)


def test_a_chat_example_draws_a_skeleton(page: PlaygroundPage) -> None:
    try_example(page, "chat", "Find the keypoints of the person.")
    page.wait(lambda: finds(page, "pose") == ["person"])
    assert (page.one("#shapes .bones").get_attribute("d") or "").count("L") >= 6


def test_the_detect_example_ends_in_boxes(page: PlaygroundPage) -> None:
    try_example(page, "detect", "dog, skull")
    page.wait(lambda: sorted(finds(page, "box")) == ["dog", "dog", "skull"])


def test_the_segment_examples_end_in_masks(page: PlaygroundPage) -> None:
    try_example(page, "segment", "cow, butterfly")
    page.wait(lambda: {"cow", "butterfly"} <= set(finds(page, "mask")))
    try_example(page, "segment", "What is marked")
    page.wait(lambda: finds(page, "mask") == ["region 1"])


def test_the_generate_example_ends_in_an_image(page: PlaygroundPage) -> None:
    try_example(page, "generate", "a cat beside a pine tree")
    assert page.texts(".made .seed") == ["seed 1"]
    shown = page.one("#picture")
    assert (shown.get_property("naturalWidth"), shown.get_property("naturalHeight")) == (128, 128)
    assert any("diffusion" in row for row in page.texts(".timeline tbody tr"))


def test_several_images_are_drawn_and_gone_on_with(page: PlaygroundPage) -> None:
    draw(page, "a dog", steps=2, count=3)
    page.wait_for_end()
    assert len(page.labels("#filmstrip button")) == 3
    page.press("Go on with this image")
    page.choose_tab("detect")
    assert (page.one("#picture").get_attribute("alt") or "").endswith("128 by 128 pixels")


def test_the_edit_example_ends_in_an_image_of_the_same_size(page: PlaygroundPage) -> None:
    try_example(page, "edit", "make the butterflies red")
    assert page.labels("#filmstrip button") == ["Source", "Result 1, seed 1"]
    shown = page.one("#picture")
    assert (shown.get_property("naturalWidth"), shown.get_property("naturalHeight")) == (259, 307)


def test_the_pose_example_ends_in_a_skeleton(page: PlaygroundPage) -> None:
    try_example(page, "pose", "person")
    page.wait(lambda: finds(page, "pose") == ["person"])


def test_what_a_tool_does_not_know_is_told_as_such(page: PlaygroundPage) -> None:
    try_example(page, "pose", "person")
    page.write("#pose-names", "cloud")
    page.press("Find poses")
    page.wait_for_end("failed")

    card = page.text("#panel-pose .problem")
    assert "unknown_skeleton" in card
    assert "person" in card, "it says what the tool knows"
    assert "Name something that the tool knows" in card
    page.write("#pose-keypoints", "")
    page.write("#pose-names", "person")
    page.press("Try again")
    page.wait_for_end()
    assert page.all("#panel-pose .problem") == []


def test_cancel_stops_a_drawing_in_its_worker(page: PlaygroundPage, cancelled: Callable[[], float]) -> None:
    before = cancelled()
    draw(page, "a cat", steps=100)
    page.wait(lambda: page.text("#panel-generate .state").startswith("Step"))
    page.press("Cancel")
    page.wait_for_end("cancelled")
    page.wait(lambda: cancelled() == before + 1)

    # The worker is free for the next one at once.
    draw(page, "a cat", steps=2)
    page.wait_for_end()
    assert len(page.texts(".made .seed")) == 1


def test_a_slow_network_shows_what_has_come_so_far(page: PlaygroundPage) -> None:
    # Milliseconds, and bytes a second: the image takes two seconds to arrive.
    page.driver.set_network_conditions(offline=False, latency=200, download_throughput=20_000, upload_throughput=40_000)
    try:
        page.choose_tab("edit")
        page.script("for (const run of document.querySelectorAll('article.run')) run.classList.add('before')")
        page.press("make the butterflies red", "#panel-edit .example")
        page.one("article.run:not(.before)")
        state = page.wait(lambda: re.fullmatch(r"Step (\d+) of (\d+).*", page.text("#panel-edit .state")))
        assert int(state[1]) < int(state[2])
        page.wait_for_end()
        assert page.labels("#filmstrip button") == ["Source", "Result 1, seed 1"]

        try_example(page, "chat", "How many dogs are there?")
        assert "2" in page.text(".answer")
    finally:
        page.driver.delete_network_conditions()


@pytest.mark.slow
def test_every_example_of_every_tab_works_on_a_phone(page: PlaygroundPage) -> None:
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        for tab in ("chat", "detect", "segment", "pose", "generate", "edit"):
            page.choose_tab(tab)
            examples = page.texts(f"#panel-{tab} .example")
            assert examples
            for name in examples:
                try_example(page, tab, name)
                assert page.all(f"#panel-{tab} .problem") == [], name
                assert page.all("#shapes .find, .made .frame, .finding"), name
                assert page.script("return document.documentElement.scrollWidth") <= PHONE["width"], name
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
