"""The tools of a gateway that runs elsewhere, for agents that start a command: through the SDK's client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from superlink.async_client import AsyncClient
from superlink.errors import SuperlinkError
from superlink.mcp.arguments import (
    AskArguments,
    DrawArguments,
    EditArguments,
    FindArguments,
    GenerateArguments,
    PoseArguments,
    SegmentArguments,
)
from superlink.mcp.pictures import inline_image, is_address, is_base64_image, local_image
from superlink.mcp.platform import OnProgress
from superlink.mcp.tools import TOOLS
from superlink.results import Answer, DetectionAnswer, DrawingAnswer

IMAGES_AS = (
    "Give an image as the absolute path of a JPEG, PNG or WebP file on this machine, as a data URL "
    "(data:image/png;base64,…) or in base64."
)


class GatewayPlatform:
    """Every call is one request to the gateway."""

    # Only the gateway knows it.
    request_id = ""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def decoders(self) -> Collection[str]:
        """As ``Platform.decoders``."""
        try:
            deployed = {service.name for service in (await self._client.ready()).services}
        except SuperlinkError:
            deployed = set()
        if "mllm" in deployed:
            return deployed
        # Agents list tools once, often before the stack is up. As long as nobody knows what is deployed, all tools are
        # listed; a call then says what is missing.
        return {kind.decoder for kind in TOOLS if kind.decoder is not None}

    async def image(self, given: str) -> bytes:
        """As ``Platform.image``; paths of files, too."""
        if is_base64_image(given) or is_address(given):
            return inline_image(given)
        return await asyncio.to_thread(local_image, given)

    async def find(self, arguments: FindArguments, image: bytes) -> DetectionAnswer:
        """As ``Platform.find``."""
        # An empty list lets the gateway say what is missing; beside regions there need be no names.
        marked = isinstance(arguments, SegmentArguments) and bool(arguments.regions)
        has_no_names = arguments.phrase is not None or (marked and not arguments.categories)
        names = None if has_no_names else arguments.categories
        options: dict[str, Any] = {
            "phrase": arguments.phrase,
            "score_threshold": arguments.score_threshold,
            "max_detections": arguments.max_detections,
        }
        match arguments:
            case SegmentArguments():
                regions = [region.model_dump(exclude_none=True) for region in arguments.regions]
                return await self._client.segment(image, names, semantic=arguments.semantic, regions=regions, **options)
            case PoseArguments():
                return await self._client.pose(image, names, keypoints=arguments.keypoints or None, **options)
        return await self._client.detect(image, names, **options)

    async def generate(self, arguments: GenerateArguments, on_progress: OnProgress) -> DrawingAnswer:
        """As ``Platform.generate``."""
        options = _drawing_options(arguments)
        return await _reported(
            lambda report: self._client.generate(arguments.prompt, on_progress=report, **options), on_progress
        )

    async def edit(
        self, arguments: EditArguments, image: bytes, mask: bytes | None, on_progress: OnProgress
    ) -> DrawingAnswer:
        """As ``Platform.edit``."""
        options = {**_drawing_options(arguments), "image_guidance": arguments.image_guidance}
        return await _reported(
            lambda report: self._client.edit(image, arguments.prompt, mask=mask, on_progress=report, **options),
            on_progress,
        )

    async def ask(self, arguments: AskArguments, images: Sequence[bytes]) -> Answer:
        """As ``Platform.ask``."""
        regions = [region.model_dump(exclude_none=True) for region in arguments.regions]
        return await self._client.chat(list(images), arguments.prompt, regions=regions)


def _drawing_options(arguments: DrawArguments) -> dict[str, Any]:
    size = tuple(int(side) for side in arguments.size.split("x")) if arguments.size is not None else None
    return {
        "n": arguments.n,
        "size": size,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
    }


async def _reported(
    draw: Callable[[Callable[[int, int], None]], Awaitable[DrawingAnswer]], on_progress: OnProgress
) -> DrawingAnswer:
    """What ``draw`` makes. The client's callback cannot wait for a notification to be sent: a task sends them."""
    steps: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    async def send() -> None:
        while (step := await steps.get()) is not None:
            await on_progress(*step)

    sending = asyncio.create_task(send())
    try:
        drawn = await draw(lambda done, total: steps.put_nowait((done, total)))
        steps.put_nowait(None)
        await sending
        return drawn
    finally:
        sending.cancel()
