"""The protocol's side: lists the tools that are deployed, and calls them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import grpc
from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import ValidationError

from superlink.errors import SuperlinkError, invalid_fields
from superlink.mcp.platform import Platform
from superlink.mcp.tools import INSTRUCTIONS, TOOLS, ToolAnswer, ToolKind, use
from superlink.results import Problem
from superlink.telemetry import current_trace_id

logger = logging.getLogger(__name__)

# Where programs find the problem document of a failed call. Not in the structured content: clients hold that to the
# tool's output schema even when the call failed.
PROBLEM_KEY = "superlink/problem"

Context = ServerRequestContext[Any]


def make_server(platform_of: Callable[[Context], Platform], images_as: str) -> Server[Any]:
    """A server of all tools whose decoder is deployed.

    ``platform_of`` is asked anew for every request; ``images_as`` is a sentence for agents about how to give images.
    """
    kinds = {kind.name: kind for kind in TOOLS}
    described = {kind.name: _describe(kind, images_as) for kind in TOOLS}

    async def list_tools(context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        deployed = await platform_of(context).decoders()
        names = [kind.name for kind in TOOLS if kind.decoder is None or kind.decoder in deployed]
        return ListToolsResult(tools=[described[name] for name in names])

    async def call_tool(context: Context, call: CallToolRequestParams) -> CallToolResult:
        kind = kinds.get(call.name)
        platform = platform_of(context)
        if kind is None:
            reason = f"There is no tool {call.name[:100]!r}. The tools are {', '.join(kinds)}."
            error = SuperlinkError("unknown_tool", reason, status=grpc.StatusCode.UNIMPLEMENTED)
            raise MCPError(INVALID_PARAMS, reason, data=_problem(error, platform))
        try:
            return _succeeded(await _in_own_task(_use(kind, platform, context, call.arguments or {})))
        except SuperlinkError as error:
            return _failed(error, kind, platform)
        except Exception:
            logger.exception("unhandled error", extra={"tool": kind.name})
            reason = f"The tool {kind.name} failed; the log has the reason."
            return _failed(SuperlinkError("internal", reason, status=grpc.StatusCode.INTERNAL), kind, platform)

    return Server(
        "superlink",
        title="Superlink",
        version=importlib.metadata.version("superlink"),
        instructions=f"{INSTRUCTIONS} {images_as}",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=lambda name: described[name].input_schema if name in described else None,
    )


def _describe(kind: ToolKind, images_as: str) -> Tool:
    takes_images = any("image" in name for name in kind.arguments.model_fields)
    return Tool(
        name=kind.name,
        title=kind.title,
        description=f"{kind.description} {images_as}" if takes_images else kind.description,
        input_schema=kind.arguments.model_json_schema(),
        output_schema=kind.output.model_json_schema(),
        # What they make, they hand over; nothing is kept or changed.
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


async def _use(kind: ToolKind, platform: Platform, context: Context, given: dict[str, Any]) -> ToolAnswer:
    async def report(done: int, total: int) -> None:
        await context.session.report_progress(done, total, f"step {done} of {total}")

    try:
        arguments = kind.arguments.model_validate(given)
    except ValidationError as error:
        raise invalid_fields(error.errors()) from error
    return await use(platform, arguments, report)


async def _in_own_task(work: Coroutine[Any, Any, ToolAnswer]) -> ToolAnswer:
    """The result of ``work``, which is cancelled when the call is.

    gRPC meets a cancellation with a CancelledError of its own. In the call's task the protocol's session would not know
    it for the one that was asked for, and end.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
    return task.result()


def _succeeded(answer: ToolAnswer) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(text=answer.text)]
    content += [ImageContent(data=picture, mime_type="image/png") for picture in answer.pictures]
    return CallToolResult(content=content, structured_content=answer.output.model_dump(exclude_none=True))


def _failed(error: SuperlinkError, kind: ToolKind, platform: Platform) -> CallToolResult:
    """What went wrong: for the model as a text with code and message, for programs as a problem document."""
    logger.info("tool call failed", extra={"tool": kind.name, "code": error.code})
    return CallToolResult(
        content=[TextContent(text=f"{error.code}: {error.message}")],
        is_error=True,
        _meta={PROBLEM_KEY: _problem(error, platform)},
    )


def _problem(error: SuperlinkError, platform: Platform) -> dict[str, Any]:
    """``error`` as a problem document."""
    error.passed_on_by("gateway")
    problem = Problem(
        code=error.code,
        detail=error.message,
        service=error.service,
        hop=error.hop or "client>gateway",
        status=error.http_status,
        request_id=error.request_id or platform.request_id,
        trace_id=current_trace_id() or None,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms or None,
    )
    return problem.model_dump(exclude_none=True)
