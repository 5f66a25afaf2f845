"""The real stack: a process a service, real gRPC, the weights of profile tiny; started once for tests that only ask."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from superlink import Client
from superlink.profile import Profile, find_profile, load_profile
from superlink.stack import LocalStack

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SAMPLES = REPOSITORY / "assets" / "samples"
STARTUP_TIMEOUT_S = 240.0


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile(find_profile("tiny"))


@pytest.fixture(scope="session")
def start_stack(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], LocalStack]:
    """Makes a stack on free ports with a log folder of its own; enter it to start it."""

    def make() -> LocalStack:
        folder = tmp_path_factory.mktemp("logs")
        return LocalStack(profile, ports="free", log_folder=folder, startup_timeout_s=STARTUP_TIMEOUT_S)

    return make


@pytest.fixture(scope="session")
def stack(start_stack: Callable[[], LocalStack]) -> Iterator[LocalStack]:
    with start_stack() as running:
        yield running


@pytest.fixture(scope="session")
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.url, max_retries=0) as connected:
        yield connected


@pytest.fixture(scope="session")
def sample() -> bytes:
    """A sample image: two dogs and a skull."""
    return (SAMPLES / "dogs.png").read_bytes()


@pytest.fixture(scope="session")
def grey() -> bytes:
    """A valid image without anything in it."""
    buffer = io.BytesIO()
    Image.new("RGB", (160, 160), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()
