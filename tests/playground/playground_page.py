"""The playground as a person meets it: by what is written on it and what it is called."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

# Generous: the browser shares its processors with whatever else runs there.
PATIENCE_S = 60.0
Found = TypeVar("Found")

# One call for all: every one to a browser that shares its processors takes its time.
_VISIBLE = "[...document.querySelectorAll(arguments[0])].filter((node) => node.checkVisibility())"
_DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[2], { type: "image/png" }));
for (const name of ["dragenter", "dragover", "drop"]) {
  arguments[0].dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
}
"""


class PlaygroundPage:
    """A browser at ``/playground`` of a gateway."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/playground")
        self.wait(lambda: self.all("#panel-chat .example"))

    def wait(self, condition: Callable[[], Found | None], patience_s: float = PATIENCE_S) -> Found:
        """What ``condition`` gives as soon as it is true of anything."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                found = condition()
            except StaleElementReferenceException:
                # The page drew it anew in the middle of the look.
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, f"waited in vain; the page shows:\n{self.text('body')}"
            time.sleep(0.1)

    def all(self, selector: str) -> list[WebElement]:
        """What matches and can be seen."""
        found: list[WebElement] = self.script(f"return {_VISIBLE}", selector)
        return found

    def one(self, selector: str) -> WebElement:
        """The first that matches and can be seen, as soon as there is one."""
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        """What is written there, as rendered."""
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.script(f"return {_VISIBLE}.map((node) => node.innerText.trim())", selector)
        return found

    def labels(self, selector: str) -> list[str | None]:
        """What they are called for those who cannot see them."""
        found: list[str | None] = self.script(f"return {_VISIBLE}.map((node) => node.ariaLabel)", selector)
        return found

    def classes(self, element: WebElement) -> set[str]:
        return set((element.get_attribute("class") or "").split())

    def choose_tab(self, name: str) -> None:
        self.one(f"#tab-{name}").click()

    def drop_picture(self, content: bytes, name: str = "scene.png") -> None:
        """Drag a file from elsewhere onto the page."""
        mat = self.driver.find_element(By.ID, "mat")
        self.driver.execute_script(_DROP, mat, base64.b64encode(content).decode(), name)
        self.wait(lambda: name in (self.one("#picture").get_attribute("alt") or ""))

    def write(self, selector: str, words: str) -> None:
        field = self.one(selector)
        field.clear()
        field.send_keys(words)

    def press(self, name: str, selector: str = "button:not([role=tab])") -> None:
        """Press the button that says ``name``."""
        named = f"return {_VISIBLE}.find((node) => node.innerText.trim() === arguments[1])"
        button: WebElement = self.wait(lambda: self.script(named, selector, name))
        button.click()

    def ask(self, words: str) -> None:
        """Send a message in the chat."""
        self.write("#chat-text", words)
        self.press("Send")

    def keys(self, *keys: str) -> None:
        """Type on whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def point_at(self, element: WebElement) -> None:
        ActionChains(self.driver).move_to_element(element).perform()

    def drag(self, start: tuple[float, float], *places: tuple[float, float]) -> None:
        """Press at ``start``, move over ``places`` and let go: parts of the picture's width and height."""
        picture = self.one("#picture")
        width, height = picture.size["width"], picture.size["height"]
        actions = ActionChains(self.driver, duration=20)
        for number, (x, y) in enumerate((start, *places)):
            actions.move_to_element_with_offset(picture, round((x - 0.5) * width), round((y - 0.5) * height))
            if number == 0:
                actions.click_and_hold()
        actions.release().perform()

    def wait_for_end(self, status: str = "done") -> None:
        """Until the last request has ended, in the way that ``status`` says."""
        last = f"return {_VISIBLE}.at(-1)?.dataset.status"
        self.wait(lambda: self.script(last, "article.run") == status)

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def tab_key(self, times: int = 1) -> None:
        for _ in range(times):
            self.keys(Keys.TAB)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def complaints(self) -> list[str]:
        """What the browser's console holds, but for answers with an error status, which some tests want."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]
