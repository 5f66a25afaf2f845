"""The real stack: a process a service, real gRPC, the weights of profile tiny; started once for tests that only ask."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from superlink import Client
from superlink.profile import Profile, TelemetrySettings, find_profile, load_profile
from superlink.stack import LocalStack
from tests.integration.trace_collector import TraceCollector, running_collector

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SAMPLES = REPOSITORY / "assets" / "samples"
STARTUP_TIMEOUT_S = 240.0


@pytest.fixture(scope="session")
def profile() -> Profile:
    """Profile tiny with one thread a worker.

    Threads of one operation wait for each other: on two processors that have other work, too, an edit takes 3 s with
    one and more than a minute with two.
    """
    profile = load_profile(find_profile("tiny"))
    workers = ("mllm", *(f"decoders.{name}" for name in profile.decoders))
    return load_profile(find_profile("tiny"), {f"{worker}.threads": 1 for worker in workers})


@pytest.fixture(scope="session")
def collector() -> Iterator[TraceCollector]:
    """Takes the traces of every stack that ``start_stack`` makes."""
    with running_collector() as running, pytest.MonkeyPatch.context() as patch:
        # Spans come soon after they ended, not within five seconds.
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield running


@pytest.fixture(scope="session")
def start_stack(
    profile: Profile, collector: TraceCollector, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], LocalStack]:
    """Makes a stack on free ports with a state folder of its own; enter it to start it."""
    traced = profile.model_copy(update={"telemetry": TelemetrySettings(otlp_endpoint=collector.endpoint)})

    def make() -> LocalStack:
        folder = tmp_path_factory.mktemp("stack")
        return LocalStack(traced, ports="free", state_folder=folder, startup_timeout_s=STARTUP_TIMEOUT_S)

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
