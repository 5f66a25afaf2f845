"""The playground's examples, one click each, against the real stack: they show what they promise."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "playground"))

from chromium import chromium
from playground_page import PlaygroundPage

from superlink.stack import LocalStack

pytestmark = pytest.mark.surface


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


def test_the_edit_example_ends_in_an_image_of_the_same_size(page: PlaygroundPage) -> None:
    try_example(page, "edit", "make the butterflies red")
    assert page.labels("#filmstrip button") == ["Source", "Result 1, seed 1"]
    shown = page.one("#picture")
    assert (shown.get_property("naturalWidth"), shown.get_property("naturalHeight")) == (259, 307)


def test_the_pose_example_ends_in_a_skeleton(page: PlaygroundPage) -> None:
    try_example(page, "pose", "person")
    page.wait(lambda: finds(page, "pose") == ["person"])
