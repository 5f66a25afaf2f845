"""The protocol's own client, and what its results hold."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent

from superlink.mcp.server import PROBLEM_KEY


@asynccontextmanager
async def held(client: AbstractAsyncContextManager[Client]) -> AsyncIterator[Client]:
    """``client`` in a task of its own, because a fixture is entered in one and left in another."""
    connected: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def live() -> None:
        async with client as entered:
            connected.set_result(entered)
            await done.wait()

    living = asyncio.create_task(live())
    await asyncio.wait({living, connected}, return_when=asyncio.FIRST_COMPLETED)
    if living.done():
        living.result()
    yield connected.result()
    done.set()
    await living


def words(result: CallToolResult) -> str:
    [first] = [block for block in result.content if isinstance(block, TextContent)]
    return first.text


def pictures(result: CallToolResult) -> list[bytes]:
    blocks = [block for block in result.content if isinstance(block, ImageContent)]
    assert {block.mime_type for block in blocks} <= {"image/png"}
    return [base64.b64decode(block.data) for block in blocks]


def problem(result: CallToolResult) -> dict[str, Any]:
    """The problem document of a failed call."""
    assert result.is_error
    assert result.structured_content is None
    assert result.meta is not None
    found = result.meta[PROBLEM_KEY]
    assert words(result) == f"{found['code']}: {found['detail']}"
    return dict(found)
