"""Keyboards, screen readers, phones, and eyes that like it dark."""

import asyncio

import pytest
from gateway_thread import GatewayThread
from playground_page import PlaygroundPage
from request_bodies import encode_picture
from scripted_workers import detection, detections, finish, group, made_images, progress, text, usage
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

MODES = ["chat", "detect", "segment", "pose", "generate", "edit"]
# Relative luminance and contrast by WCAG 2.
_CONTRAST = """
const channels = (colour) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const luminance = (rgb) => rgb.slice(0, 3)
  .map((value) => value / 255)
  .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const ground = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = channels(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
};
return [...document.querySelectorAll(arguments[0])].filter((node) => node.checkVisibility()).map((node) => {
  const two = [channels(getComputedStyle(node).color), ground(node)].map(luminance);
  return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
});
"""


def set_width(page: PlaygroundPage, width: int) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def test_every_control_has_a_name(page: PlaygroundPage, png: bytes) -> None:
    page.drop_picture(png)
    for mode in MODES:
        page.choose_tab(mode)
        for control in page.all("button, input, textarea, select, a, [role=application]"):
            assert control.accessible_name, control.get_attribute("outerHTML")


def test_the_tabs_follow_the_pattern_of_tabs(page: PlaygroundPage) -> None:
    page.one("#tab-chat").click()
    for mode in [*MODES[1:], MODES[0]]:
        page.keys(Keys.ARROW_RIGHT)
        assert page.focused().get_attribute("id") == f"tab-{mode}"
        assert [each.get_attribute("id") for each in page.all("[role=tabpanel]")] == [f"panel-{mode}"]
    page.keys(Keys.END)
    assert page.focused().get_attribute("id") == "tab-edit"
    page.keys(Keys.HOME, Keys.ARROW_LEFT)
    assert page.focused().get_attribute("aria-selected") == "true"


def test_the_focus_goes_from_the_picture_to_the_request(page: PlaygroundPage, png: bytes) -> None:
    page.drop_picture(png)
    page.script("document.activeElement.blur(); document.querySelector('#tab-chat').focus()")
    order = []
    for _ in range(8):
        page.tab_key()
        focused = page.focused()
        order.append(focused.get_attribute("id") or focused.text)
        assert (
            page.script("return getComputedStyle(document.activeElement).outlineStyle") != "none" or order[-1] == "file"
        )
    expected = ["file", "remove-picture", "tool-point", "tool-box", "tool-scribble", "chat-text", "Send"]
    assert order[:7] == expected


def test_headings_go_down_step_by_step(page: PlaygroundPage) -> None:
    for mode in MODES:
        page.choose_tab(mode)
        levels = page.script("return [...document.querySelectorAll('h1, h2, h3')].map(({ tagName }) => +tagName[1])")
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False)), (mode, levels)


def test_the_keyboard_keeps_its_place_while_a_request_comes_and_goes(
    gateway: GatewayThread, page: PlaygroundPage, png: bytes
) -> None:
    gateway.workers.detection.script = lambda request: [asyncio.Event()]
    page.choose_tab("detect")
    page.drop_picture(png)
    page.write("#detect-names", "dog")
    # To the options, and on to the button.
    page.tab_key(3)
    assert page.focused().text == "Detect"

    page.keys(Keys.ENTER)
    page.wait(lambda: page.focused().text == "Cancel")
    page.keys(Keys.ENTER)
    page.wait_for_end("cancelled")
    assert page.focused().text == "Detect"

    page.tab_key()
    assert page.focused().text == "Try again"
    page.keys(Keys.ENTER)
    page.wait(lambda: page.focused().text == "Cancel")
    page.keys(Keys.ENTER)
    page.wait_for_end("cancelled")


def test_an_answer_is_said_sentence_by_sentence(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    more = asyncio.Event()
    gateway.workers.mllm.rounds = [
        [
            *(text(piece) for piece in ("Here ", "is the ", "dog")),
            group("dog", 12),
            *(text(piece) for piece in (". It ", "is")),
            more,
            text(" brown."),
            usage(30, 16, 9),
            finish(),
        ]
    ]
    region = page.driver.find_element(By.ID, "announcements")
    assert region.get_attribute("aria-live") == "polite"
    page.drop_picture(png)
    page.ask("Where is the dog?")

    def said() -> list[str]:
        lines = region.find_elements(By.TAG_NAME, "p")
        return [line.get_attribute("textContent") or "" for line in lines]

    page.wait(lambda: "Here is the dog." in said())
    assert not any("It is" in line for line in said())
    gateway.release(more)
    page.wait_for_end()
    page.wait(lambda: said()[-2:] == ["It is brown.", "Done. dog: 1 box."])


def test_a_drawing_says_a_few_of_its_steps(gateway: GatewayThread, page: PlaygroundPage) -> None:
    gateway.workers.diffusion.script = lambda request: [
        *(progress(done, 20) for done in range(1, 21)),
        made_images(encode_picture()),
    ]
    page.script(
        """
        window.said = [];
        const note = ({ addedNodes }) => said.push(...[...addedNodes].map((line) => line.textContent));
        const observer = new MutationObserver((changes) => changes.forEach(note));
        observer.observe(document.querySelector("#announcements"), { childList: true });
        """
    )
    page.choose_tab("generate")
    page.write("#generate-prompt", "a cat")
    page.press("Generate")
    page.wait_for_end()

    said = page.wait(lambda: page.script("return said.at(-1).startsWith('Done') && said"))
    assert said == ["Sent.", "Step 5 of 20.", "Step 10 of 20.", "Step 15 of 20.", "Done. a cat: 1 image."]


@pytest.mark.parametrize(
    ("tool", "keys", "mark"),
    [
        ("Point", [Keys.ENTER], "points"),
        ("Box", [Keys.ENTER, *[Keys.ARROW_RIGHT] * 5, *[Keys.ARROW_DOWN] * 5, Keys.ENTER], "box"),
        ("Scribble", [" ", *[Keys.ARROW_LEFT] * 4, " "], "stroke"),
    ],
)
def test_marks_can_be_drawn_by_keyboard(
    gateway: GatewayThread, page: PlaygroundPage, png: bytes, tool: str, keys: list[str], mark: str
) -> None:
    page.drop_picture(png)
    page.press(tool)
    page.script("document.querySelector('#board').focus()")
    page.keys(Keys.ARROW_RIGHT, *keys)
    page.wait(lambda: page.text("#marks-count") == "1 mark of at most 16")

    page.ask("What is this?")
    page.wait_for_end()

    parts = gateway.workers.mllm.generate_requests[0].messages[0].parts
    [region] = [part.region for part in parts if part.HasField("region")]
    assert region.WhichOneof("mark") == mark
    if mark == "box":
        # From the middle, one step to the right, then five steps of a fiftieth of the longer side.
        assert (region.box.x1, region.box.y1, region.box.x2, region.box.y2) == (104, 50, 124, 70)


def test_a_mark_can_be_taken_back(page: PlaygroundPage, png: bytes) -> None:
    page.drop_picture(png)
    page.press("Scribble")
    page.drag((0.2, 0.2), (0.4, 0.4), (0.6, 0.2))
    page.drag((0.7, 0.7), (0.8, 0.8))
    page.wait(lambda: page.text("#marks-count") == "2 marks of at most 16")
    page.press("Undo")
    assert page.text("#marks-count") == "1 mark of at most 16"
    page.press("Clear")
    assert page.all(".mark") == []


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(gateway: GatewayThread, page: PlaygroundPage, png: bytes, width: int) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(9, 4, 3), finish()]]
    set_width(page, width)
    try:
        page.drop_picture(png)
        page.ask("Where is the dog?")
        page.wait_for_end()
        # Long words at the edge of the picture.
        gateway.workers.detection.script = lambda request: [detections([detection(0, 0.9, (170, 40, 200, 60))])]
        page.choose_tab("detect")
        page.write("#detect-names", "the small brown dog beside the tree")
        page.press("Detect")
        page.wait_for_end()
        assert page.texts("#labels .label") == ["the small brown dog beside the tree0.90"]
        for mode in MODES:
            page.choose_tab(mode)
            assert page.script("return document.documentElement.scrollWidth") <= width, mode
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_until_it_is_switched(
    gateway: GatewayThread, page: PlaygroundPage, png: bytes, scheme: str
) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        shown = lambda: page.script("return document.documentElement.dataset.theme")  # noqa: E731
        page.wait(lambda: shown() == scheme)
        gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(9, 4, 3), finish()]]
        page.drop_picture(png)
        page.ask("Where is the dog?")
        page.wait_for_end()
        readable = page.script(
            _CONTRAST, "h1, .hint, label, button:not(:disabled), .answer, .state, .timeline td, .label"
        )
        assert min(readable) >= 4.5

        switch = page.one("#theme-button")
        assert switch.accessible_name == f"Switch to the {other} theme"
        switch.click()
        page.wait(lambda: shown() == other)
        page.driver.refresh()
        page.wait(lambda: shown() == other)
        page.one("#theme-button").click()
        page.wait(lambda: page.script("return localStorage.length") == 0)
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
