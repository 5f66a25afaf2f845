"""Where the replicas of a service are: a name stands for every address that it resolves to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# ``host:port`` to what it stands for now. Raises OSError when nobody can say.
Resolve = Callable[[str], Awaitable[Sequence[str]]]


async def resolve(address: str) -> Sequence[str]:
    """The addresses of ``host:port``, all of one family: a machine with two has one address of each."""
    if is_literal(address):
        return (address,)
    host, _, port = address.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no name of a host") from error
    hosts = {kind: [str(target[0]) for family, _, _, _, target in found if family == kind] for kind in _FAMILIES}
    return tuple(
        [f"{each}:{port}" for each in hosts[socket.AF_INET]] or [f"[{each}]:{port}" for each in hosts[socket.AF_INET6]]
    )


def is_literal(address: str) -> bool:
    """Whether ``address`` can only ever mean itself."""
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
