import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

# For scripted_workers, which the tests of the orchestrator use as well, and for the modules beside this file.
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator"))
sys.path.insert(0, str(Path(__file__).parent))

from api_key_maker import REQUIRED
from batch_workers import batch_worker
from image_fetching import PRIVATE, Names, settings_for
from image_server import ImageServer, answer, image_server
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis, live_redis
from request_bodies import encode_picture


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


@pytest.fixture
def worker(gateway: LiveGateway, tmp_path: Path) -> Iterator[None]:
    """A worker of batches beside ``gateway``, which has to have them."""
    with batch_worker(tmp_path / "worker", gateway):
        yield


@pytest.fixture(scope="session")
def png() -> bytes:
    return encode_picture()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRedis]:
    with live_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: LiveRedis) -> LiveRedis:
    """A real one, empty. Tests that stop it start their own."""
    shared_redis.clear()
    return shared_redis


@pytest.fixture
async def keyed(redis_server: LiveRedis) -> AsyncIterator[LiveGateway]:
    """A gateway that needs API keys."""
    async with live_gateway(redis_url=redis_server.url, keys=REQUIRED) as running:
        yield running


@pytest.fixture
async def image_host() -> AsyncIterator[ImageServer]:
    """A web server with an image at /dog.png."""
    async with image_server() as running:
        running.replies["/dog.png"] = answer(encode_picture(), "Content-Type: image/png")
        yield running


@pytest.fixture
async def private_host(image_host: ImageServer) -> AsyncIterator[ImageServer]:
    """What must not be reached, at the same port as ``image_host``."""
    async with image_server(PRIVATE, image_host.port) as running:
        running.replies["/dog.png"] = answer(encode_picture())
        yield running


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
async def fetching(image_host: ImageServer, names: Names) -> AsyncIterator[LiveGateway]:
    """A gateway that fetches images, and looks their hosts up in ``names``."""
    async with live_gateway(resolve=names, image_urls=settings_for(image_host)) as running:
        yield running
