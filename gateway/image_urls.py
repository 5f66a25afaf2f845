"""Images that clients give by address: fetched by the gateway, where the profile lets it.

A client must not reach through the gateway what it cannot reach itself (server-side request forgery). So a name is
looked up once, every address that it has must be public, and the connection goes to an address that was checked; a name
that means something else a moment later gains nothing. Redirects start over with all checks. What arrives is counted
while it arrives, is never unpacked, and is believed to be an image only when its first bytes say so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

import grpc
import httpx

from gateway.images import ReceivedImage, receive_image
from gateway.public_addresses import Address, is_public
from superlink.errors import SuperlinkError, invalid_argument
from superlink.image_header import image_too_large
from superlink.profile import ImageLimits, ImageUrlSettings

# The addresses of a host name. Raises OSError where it has none.
Resolver = Callable[[str], Awaitable[Sequence[Address]]]

MAX_URL_CHARACTERS = 2048
# Over all requests; each may hold a whole image in memory. Further ones wait within their time.
MAX_FETCHES = 64
# Of the machine's resolver, at a time. A look-up that hangs keeps its thread until the system gives up on it.
MAX_LOOKUPS = 8
# A host may have several addresses, and the first may not answer.
CONNECT_TIMEOUT_S = 3.0

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "accept": "image/jpeg, image/png, image/webp",
    # Packed answers are refused rather than unpacked: a few kilobytes may unpack to gigabytes.
    "accept-encoding": "identity",
    "user-agent": "superlink",
}


class SystemResolver:
    """Looks names up as every program on this machine does, in threads that no other work waits for."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="lookup")

    async def __call__(self, host: str) -> Sequence[Address]:
        """The addresses of ``host``. Raises OSError or UnicodeError where it has none."""
        loop = asyncio.get_running_loop()
        look_up = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._threads, look_up)
        return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


class ImageFetcher:
    """Fetches images for all requests of a gateway."""

    def __init__(self, settings: ImageUrlSettings, limits: ImageLimits, resolve: Resolver) -> None:
        self._settings = settings
        self._limits = limits
        self._resolve = resolve
        self._places = asyncio.Semaphore(MAX_FETCHES)
        # A transport alone: clients follow redirects and look into the environment for proxies, which would look names
        # up again. Certificates of an authority of one's own come from SSL_CERT_FILE all the same.
        self._transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(trust_env=True),
            # Connections are made to addresses. One that is kept would serve the next host at the same address, too,
            # whose certificate nobody has looked at.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

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
            found = await self._ask(self._checked(address))
            if isinstance(found, bytes):
                return found
            address = found
        raise _failed(f"Its address is redirected more than {self._settings.max_redirects} times.")

    def _checked(self, address: str) -> httpx.URL:
        """``address`` in parts, of which each may be asked for but the host, which is not looked up yet."""
        if len(address) > MAX_URL_CHARACTERS:
            raise _refused(f"An image's address has {MAX_URL_CHARACTERS:,} characters at most.")
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as error:
            raise _refused(f"An image's address is none: {error}.") from error
        if url.scheme not in _PORTS or not url.host:
            raise _refused("Images are fetched from http and https addresses, and taken from data URLs.")
        if url.userinfo:
            raise _refused("An image's address may not hold a user name or a password.")
        port = _PORTS[url.scheme] if url.port is None else url.port
        if port not in self._settings.ports:
            ports = ", ".join(map(str, self._settings.ports))
            raise _refused(f"Images are fetched from these ports: {ports}. Whoever runs this gateway can add {port}.")
        return url

    async def _ask(self, url: httpx.URL) -> bytes | str:
        """The file at ``url``, or the address that it is redirected to."""
        host = url.raw_host.decode("ascii")
        for address in await self._public_addresses(host):
            request = httpx.Request(
                "GET",
                # To the address that was checked: the name is not looked up again.
                url.copy_with(host=str(address)),
                headers={"host": url.netloc.decode("ascii"), **_HEADERS},
                extensions={"sni_hostname": host, "timeout": {"connect": CONNECT_TIMEOUT_S}},
            )
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

    async def _public_addresses(self, host: str) -> Sequence[Address]:
        try:
            addresses = await self._resolve(host)
        except (OSError, UnicodeError):
            addresses = []
        # One private address among public ones is reason enough: it is there to be met by chance.
        if not addresses or not all(map(self._may_be_asked, addresses)):
            # Not which of the two, nor the address: a name that only an inner network knows is nobody else's business.
            raise _refused(f"The host {host!r} is unknown, or not at a public address.")
        return addresses

    def _may_be_asked(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._settings.allowed_networks)

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
