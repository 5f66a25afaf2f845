"""Going to addresses that clients named, without letting them reach what they could not reach themselves.

A client must not use this deployment as a way into somebody's own network (server-side request forgery). So a name is
looked up once, every address that it has must be public, and the connection goes to an address that was checked; a
name that means something else a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address

import httpx

from superlink.public_addresses import Address, is_public

# The addresses of a host name. Raises OSError or UnicodeError where it has none.
Resolver = Callable[[str], Awaitable[Sequence[Address]]]

MAX_URL_CHARACTERS = 2048
# Of the machine's resolver, at a time. A look-up that hangs keeps its thread until the system gives up on it.
MAX_LOOKUPS = 8
# A host may have several addresses, and the first may not answer.
CONNECT_TIMEOUT_S = 3.0

_PORTS = {"http": 80, "https": 443}


class AddressRefused(Exception):
    """The address may not be gone to; the text says why, and nothing of what lies there."""


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


def checked_url(address: str, ports: Collection[int], subject: str) -> httpx.URL:
    """``address`` in parts, of which each may be asked for but the host, which is not looked up yet.

    ``subject`` begins the sentences of what is raised: "An image's address". Raises AddressRefused.
    """
    if len(address) > MAX_URL_CHARACTERS:
        raise AddressRefused(f"{subject} has {MAX_URL_CHARACTERS:,} characters at most.")
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise AddressRefused(f"{subject} is none: {error}.") from error
    if url.scheme not in _PORTS or not url.host:
        raise AddressRefused(f"{subject} begins with http:// or https://, and names a host.")
    if url.userinfo:
        raise AddressRefused(f"{subject} may not hold a user name or a password.")
    port = _PORTS[url.scheme] if url.port is None else url.port
    if port not in ports:
        allowed = ", ".join(map(str, ports))
        raise AddressRefused(f"{subject} may have these ports: {allowed}. Whoever runs this deployment can add {port}.")
    return url


async def public_addresses(
    host: str, resolve: Resolver, allowed_networks: Sequence[IPv4Network | IPv6Network]
) -> Sequence[Address]:
    """The addresses of ``host``, which may all be gone to. Raises AddressRefused."""
    try:
        addresses = await resolve(host)
    except (OSError, UnicodeError):
        addresses = []

    def may_be_asked(address: Address) -> bool:
        return is_public(address) or any(address in network for network in allowed_networks)

    # One private address among public ones is reason enough: it is there to be met by chance.
    if not addresses or not all(map(may_be_asked, addresses)):
        # Not which of the two, nor the address: a name that only an inner network knows is nobody else's business.
        raise AddressRefused(f"The host {host!r} is unknown, or not at a public address.")
    return addresses


def request_to(
    address: Address, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes = b""
) -> httpx.Request:
    """A request for ``url`` that goes to ``address``, which was checked: the name is not looked up again."""
    return httpx.Request(
        method,
        url.copy_with(host=str(address)),
        headers={"host": url.netloc.decode("ascii"), **headers},
        content=content,
        extensions={"sni_hostname": url.raw_host.decode("ascii"), "timeout": {"connect": CONNECT_TIMEOUT_S}},
    )


def open_transport() -> httpx.AsyncHTTPTransport:
    """What carries such requests.

    A transport alone: clients follow redirects and look into the environment for proxies, which would look names up
    again. Certificates of an authority of one's own come from SSL_CERT_FILE all the same.
    """
    return httpx.AsyncHTTPTransport(
        verify=httpx.create_ssl_context(trust_env=True),
        # Connections are made to addresses. One that is kept would serve the next host at the same address, too, whose
        # certificate nobody has looked at.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
