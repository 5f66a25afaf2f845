"""Words and what was found for them bring each other out, by pointer, keyboard and touch."""

from collections.abc import Callable

import pytest
from gateway_thread import GatewayThread
from playground_page import PlaygroundPage
from scripted_workers import detection, detections, finish, group, text, usage
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement


@pytest.fixture
def answered(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> PlaygroundPage:
    """Two dogs and a cat, found in one answer."""
    gateway.workers.mllm.rounds = [
        [text("Dogs"), group("Dogs", 0), text(" and a cat"), group("cat", 11), text("."), usage(30, 16, 9), finish()]
    ]
    gateway.workers.detection.script = lambda request: [
        detections(
            [
                detection(0, 0.9, (10, 10, 50, 50)),
                detection(0, 0.8, (60, 10, 90, 50)),
                detection(1, 0.7, (120, 20, 180, 90)),
            ],
            2,
        )
    ]
    page.drop_picture(png)
    page.ask("What is here?")
    page.wait_for_end()
    return page


def states(page: PlaygroundPage, selector: str) -> list[str]:
    """ "active", "dimmed" or "" of each."""
    return [
        next((state for state in ("active", "dimmed") if f"is-{state}" in page.classes(each)), "")
        for each in page.driver.find_elements(By.CSS_SELECTOR, selector)
    ]


def shapes(page: PlaygroundPage) -> dict[str, str]:
    labels = [each.get_attribute("aria-label") or "" for each in page.driver.find_elements(By.CSS_SELECTOR, ".find")]
    return dict(zip((label.partition(", score")[0] for label in labels), states(page, ".find"), strict=True))


def shape(page: PlaygroundPage, name: str) -> WebElement:
    return page.driver.find_element(By.CSS_SELECTOR, f'.find[aria-label^="{name}"] .edge')


def test_a_phrase_brings_out_its_boxes(answered: PlaygroundPage) -> None:
    answered.point_at(answered.all(".phrase")[0])

    assert answered.wait(lambda: "active" in states(answered, ".find"))
    assert shapes(answered) == {"Dogs, box 1 of 2": "active", "Dogs, box 2 of 2": "active", "cat, box 1 of 1": "dimmed"}
    assert states(answered, ".phrase") == ["active", "dimmed"]


def test_a_box_brings_out_its_phrase(answered: PlaygroundPage) -> None:
    answered.point_at(shape(answered, "Dogs, box 2"))

    assert answered.wait(lambda: "active" in states(answered, ".phrase"))
    assert states(answered, ".phrase") == ["active", "dimmed"]
    assert shapes(answered) == {"Dogs, box 1 of 2": "", "Dogs, box 2 of 2": "active", "cat, box 1 of 1": "dimmed"}
    # The list below the answer takes part.
    assert states(answered, ".finding-item") == ["", "active", "dimmed"]


def test_the_keyboard_does_the_same(answered: PlaygroundPage) -> None:
    answered.script("arguments[0].focus()", answered.all(".phrase")[1])
    assert shapes(answered)["cat, box 1 of 1"] == "active"

    # All boxes are one stop; arrows go from one to the next.
    answered.script("document.querySelector('.find[tabindex=\"0\"]').focus()")
    assert (answered.focused().get_attribute("aria-label") or "").startswith("Dogs, box 1")
    answered.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert (answered.focused().get_attribute("aria-label") or "").startswith("cat, box 1")
    assert states(answered, ".phrase") == ["dimmed", "active"]
    answered.keys(Keys.ENTER)
    answered.one("#chat-text").click()
    assert states(answered, ".phrase") == ["dimmed", "active"], "a press holds it"


def test_a_press_holds_until_the_next_one(answered: PlaygroundPage) -> None:
    phrase = answered.all(".phrase")[0]
    phrase.click()
    answered.point_at(answered.one("#chat-text"))
    assert states(answered, ".phrase") == ["active", "dimmed"]
    assert phrase.get_attribute("aria-pressed") == "true"

    phrase.click()
    answered.point_at(answered.one("#chat-text"))
    assert states(answered, ".phrase") == ["", ""]


def test_an_earlier_answer_brings_its_picture_back(
    gateway: GatewayThread, answered: PlaygroundPage, png: bytes
) -> None:
    gateway.workers.mllm.rounds = [[text("Nothing."), usage(30, 16, 9), finish()]]
    answered.drop_picture(png, "second.png")
    answered.ask("And here?")
    answered.wait_for_end()
    assert answered.all(".find") == []

    answered.point_at(answered.all(".phrase")[0])

    look: Callable[[], bool] = lambda: "scene.png" in (answered.one("#picture").get_attribute("alt") or "")  # noqa: E731
    assert answered.wait(look)
    assert len(answered.all(".find")) == 3
