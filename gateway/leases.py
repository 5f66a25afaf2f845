"""What a request holds in Redis while it runs, so that a gateway that dies holds nothing for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from superlink.errors import SuperlinkError

logger = logging.getLogger(__name__)

LEASE_S = 10.0
LEASE_MS = int(LEASE_S * 1000)
# Three chances to renew a lease before it runs out.
RENEW_EVERY_S = 3.0


class Lease:
    """Renewed until it is released. Where Redis is away by then, it runs out by itself."""

    def __init__(self, renew: Callable[[], Awaitable[None]], give_back: Callable[[], Awaitable[None]]) -> None:
        """Both raise SuperlinkError when Redis does not answer. Must be made inside the running loop."""
        self._renew = renew
        self._give_back = give_back
        self._renewing = asyncio.create_task(self._keep_renewing())
        self._released = False

    async def release(self) -> None:
        """Give back what is held; the second time nothing happens."""
        if self._released:
            return
        self._released = True
        self._renewing.cancel()
        try:
            await self._give_back()
        except SuperlinkError:
            logger.warning("a lease was left to run out")

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self._renew()
            except SuperlinkError:
                logger.warning("a lease was not renewed")
