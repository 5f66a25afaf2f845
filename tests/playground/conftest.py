import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver

# For the live gateway and its scripted workers, and for the modules beside this file.
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator"))
sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))
sys.path.insert(0, str(Path(__file__).parent))

from chromium import chromium
from gateway_thread import GatewayThread
from playground_page import PATIENCE_S, PlaygroundPage
from request_bodies import encode_picture


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[GatewayThread]:
    with GatewayThread(request_timeout_s=PATIENCE_S) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: GatewayThread) -> GatewayThread:
    """With all workers at the start of their scripts."""
    shared_gateway.workers.reset()
    return shared_gateway


@pytest.fixture
def open_page(driver: webdriver.Chrome) -> Iterator[Callable[[str], PlaygroundPage]]:
    """Opens the playground of a gateway; afterwards nothing may have gone wrong in the page itself."""
    opened: list[PlaygroundPage] = []

    def open_at(url: str) -> PlaygroundPage:
        opened.append(PlaygroundPage(driver, url))
        return opened[-1]

    yield open_at
    driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    assert [complaint for page in opened for complaint in page.complaints()] == []


@pytest.fixture
def page(gateway: GatewayThread, open_page: Callable[[str], PlaygroundPage]) -> PlaygroundPage:
    return open_page(gateway.url)


@pytest.fixture(scope="session")
def png() -> bytes:
    """200 by 100 pixels."""
    return encode_picture()
