"""Images that a request only names: by an address of the web, or by the id of a file of the same client."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.calls import Call
from gateway.deployment import Deployment
from gateway.images import ReceivedImage, receive_image
from superlink.artifacts import ID_PREFIX
from superlink.image_header import image_too_large


async def load_images(deployment: Deployment, call: Call, addresses: Iterable[str]) -> dict[str, ReceivedImage]:
    """The images at those of ``addresses`` that are no data URLs, each loaded once.

    Raises SuperlinkError ``unknown_file``, ``storage_unavailable``, and what ``ImageFetcher.fetch`` and
    ``receive_image`` raise.
    """
    named = list(dict.fromkeys(addresses))
    files = [address for address in named if address.startswith(ID_PREFIX)]
    loaded = await deployment.fetcher.fetch([each for each in named if each not in files], call.left_s())
    for file_id in files:
        loaded[file_id] = await deployment.storage.run(_read, deployment, call.owner, file_id)
    return loaded


def _read(deployment: Deployment, owner: str, file_id: str) -> ReceivedImage:
    limits = deployment.profile.images
    record = deployment.artifacts.get(owner, file_id)
    if record.size_bytes > limits.max_image_bytes:
        raise image_too_large(f"is {record.size_bytes:,} bytes long; the limit is {limits.max_image_bytes:,}")
    with deployment.artifacts.open(record) as file:
        return receive_image(file.read(), limits)
