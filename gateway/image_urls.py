"""Images that clients give by address: fetched by the gateway, where the profile lets it.

``superlink.public_hosts`` keeps the gateway from going where a client could not go itself. Redirects start over with
all its checks. What arrives is counted while it arrives, is never unpacked, and is believed to be an image only when
its first bytes say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import httpx

from gateway.images import ReceivedImage, receive_image
from superlink.errors import SuperlinkError, invalid_argument
from superlink.image_header import image_too_large
from superlink.profile import ImageLimits, ImageUrlSettings
from superlink.public_hosts import (
    AddressRefused,
    Resolver,
    checked_url,
    open_transport,
    public_addresses,
    request_to,
)

# Over all requests; each may hold a whole image in memory. Further ones wait within their time.
MAX_FETCHES = 64

_SUBJECT = "An image's address"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "accept": "image/jpeg, image/png, image/webp",
    # Packed answers are refused rather than unpacked: a few kilobytes may unpack to gigabytes.
    "accept-encoding": "identity",
    "user-agent": "superlink",
}


class ImageFetcher:
    """Fetches images for all requests of a gateway."""

    def __init__(self, settings: ImageUrlSettings, limits: ImageLimits, resolve: Resolver) -> None:
        self._settings = settings
        self._limits = limits
        self._resolve = resolve
        self._places = asyncio.Semaphore(MAX_FETCHES)
        self._transport = open_transport()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def fetch(self, addresses: Iterable[str], timeout_s: float) -> dict[str, ReceivedImage]:
        """The images at those of ``addresses`` that are no data URLs, each fetched once.

        Raises SuperlinkError ``remote_image_refused``, ``image_fetch_failed``, ``image_fetch_too_slow``, and what
        ``receive_image`` raises.
        """
        remote = list(dict.fromkeys(address for address in addresses if address[:5].lower() != "data:"))
        if remote and not self._settings.enabled:
            raise _refused(
                "Images are not fetched from addresses here. Send the image itself as a data URL: "
                "data:image/png;base64,…. Whoever runs this gateway can set gateway.image_urls.enabled in its profile."
            )
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {address: group.create_task(self._fetch_one(address, timeout_s)) for address in remote}
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {address: task.result() for address, task in tasks.items()}

    async def _fetch_one(self, address: str, timeout_s: float) -> ReceivedImage:
        timeout_s = min(self._settings.timeout_s, timeout_s)
        try:
            async with asyncio.timeout(timeout_s), self._places:
                encoded = await self._follow(address)
        except TimeoutError as error:
            raise SuperlinkError(
                "image_fetch_too_slow",
                f"The image did not arrive from its address within {timeout_s:.3g} seconds.",
                status=grpc.StatusCode.DEADLINE_EXCEEDED,
                retryable=True,
            ) from error
        return receive_image(encoded, self._limits)

    async def _follow(self, address: str) -> bytes:
        """The file at ``address``, or where redirects lead from there."""
        for _ in range(self._settings.max_redirects + 1):
            found = await self._ask(address)
            if isinstance(found, bytes):
                return found
            address = found
        raise _failed(f"Its address is redirected more than {self._settings.max_redirects} times.")

    async def _ask(self, address: str) -> bytes | str:
        """The file at ``address``, or the address that it is redirected to."""
        try:
            url = checked_url(address, self._settings.ports, _SUBJECT)
            host = url.raw_host.decode("ascii")
            places = await public_addresses(host, self._resolve, self._settings.allowed_networks)
        except AddressRefused as error:
            raise _refused(str(error)) from error
        for place in places:
            request = request_to(place, "GET", url, _HEADERS)
            try:
                response = await self._transport.handle_async_request(request)
                try:
                    return await self._read(response, url)
                finally:
                    await response.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except httpx.HTTPError as error:
                raise _failed(f"The server at {host} broke off, or does not speak HTTP.") from error
        raise _failed(f"No connection to the server at {host}.")

    async def _read(self, response: httpx.Response, url: httpx.URL) -> bytes | str:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            try:
                return str(url.join(response.headers["location"]))
            except (httpx.InvalidURL, ValueError) as error:
                raise _failed(f"The server at {url.host} redirects to an address that is none.") from error
        if response.status_code != httpx.codes.OK:
            raise _failed(f"The server at {url.host} answers with the status {response.status_code}.")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _failed(f"The server at {url.host} packs its answer although it was asked not to.")
        limit = self._limits.max_image_bytes
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise image_too_large(f"is {int(length):,} bytes long; the limit is {limit:,}")
        received = bytearray()
        # Raw: as it came over the wire.
        async for piece in response.aiter_raw():
            received += piece
            if len(received) > limit:
                raise image_too_large(f"is longer than {limit:,} bytes")
        return bytes(received)


def _refused(message: str) -> SuperlinkError:
    return invalid_argument("remote_image_refused", message)


def _failed(reason: str) -> SuperlinkError:
    return invalid_argument("image_fetch_failed", f"The image could not be fetched. {reason}")
