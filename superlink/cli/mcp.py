"""``superlink mcp``: the tools for agents that start a command."""

from __future__ import annotations

import asyncio

from mcp.server.stdio import stdio_server

from superlink.async_client import AsyncClient
from superlink.cli.options import (
    DEFAULT_PROFILE,
    ApiKeyOption,
    ProfileOption,
    SetOption,
    TimeoutOption,
    UrlOption,
    gateway_url,
    read_profile,
)
from superlink.connection_settings import DEFAULT_TIMEOUT_S
from superlink.mcp.server import make_server
from superlink.mcp.through_gateway import IMAGES_AS, GatewayPlatform


def mcp(
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Give an agent the tools of a running gateway, over standard input and output (Model Context Protocol).

    Agents start this command by themselves; docs/mcp.md shows what to write into their configuration. It ends when its
    input does.

    Example: superlink mcp --url http://127.0.0.1:8080
    """
    client = AsyncClient(gateway_url(read_profile(profile, settings), url), api_key=api_key, timeout_s=timeout_s)
    asyncio.run(_serve(client))


async def _serve(client: AsyncClient) -> None:
    async with client, stdio_server() as (incoming, outgoing):
        platform = GatewayPlatform(client)
        server = make_server(lambda _: platform, IMAGES_AS)
        await server.run(incoming, outgoing, server.create_initialization_options())
