"""The tools of agents, answered by the code that answers the REST API."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel

from gateway.calls import Call
from gateway.chat import complete_chat
from gateway.chat_schema import ChatMessage, ChatRequest, RegionPart, TextPart
from gateway.deployment import Deployment
from gateway.detect import DETECTION, POSE, SEGMENTATION, FindTask, find
from gateway.drawing import draw, edit_message
from gateway.drawing_schema import GenerationOptions
from gateway.images import receive_address, receive_image
from gateway.regions import RegionMark
from superlink.mcp.arguments import (
    AskArguments,
    DetectArguments,
    DrawArguments,
    EditArguments,
    FindArguments,
    GenerateArguments,
    PoseArguments,
    Region,
    SegmentArguments,
)
from superlink.mcp.pictures import inline_image, is_address
from superlink.mcp.platform import OnProgress
from superlink.results import Answer, DetectionAnswer, DrawingAnswer
from superlink.v1 import orchestrator_pb2

_TASKS: dict[type[FindArguments], FindTask] = {
    DetectArguments: DETECTION,
    SegmentArguments: SEGMENTATION,
    PoseArguments: POSE,
}
# Arguments that are options of the REST API by the same name.
_TUNING = frozenset({"seed", "steps", "guidance", "image_guidance"})


class OrchestratorPlatform:
    """One call, on its way to the orchestrator."""

    def __init__(self, deployment: Deployment, call: Call) -> None:
        self._deployment = deployment
        self._call = call
        self.request_id = call.request_id

    async def decoders(self) -> Collection[str]:
        """As ``Platform.decoders``: those of the profile, so that a worker's restart takes no tool from an agent."""
        return self._deployment.profile.decoders.keys()

    async def image(self, given: str) -> bytes:
        """As ``Platform.image``; addresses are fetched where the profile lets them be."""
        if not is_address(given):
            return inline_image(given)
        fetched = await self._deployment.fetcher.fetch([given], self._call.left_s())
        return receive_address(given, self._deployment.profile.images, fetched).message.encoded

    async def find(self, arguments: FindArguments, image: bytes) -> DetectionAnswer:
        """As ``Platform.find``."""
        task = _TASKS[type(arguments)]
        given: dict[str, Any] = arguments.model_dump(exclude={"image", "overlay", "regions"})
        if isinstance(arguments, SegmentArguments):
            given["regions"] = [_mark(region) for region in arguments.regions]
        received = receive_image(image, self._deployment.profile.images)
        options = task.options.model_validate(given)
        found = await find(self._deployment, self._call, task, received, options)
        return DetectionAnswer.model_validate(self._document(found))

    async def generate(self, arguments: GenerateArguments, on_progress: OnProgress) -> DrawingAnswer:
        """As ``Platform.generate``."""
        message = orchestrator_pb2.DrawRequest()
        drawn = await draw(self._deployment, self._call, _drawing_options(arguments), message, on_progress)
        return DrawingAnswer.model_validate(self._document(drawn))

    async def edit(
        self, arguments: EditArguments, image: bytes, mask: bytes | None, on_progress: OnProgress
    ) -> DrawingAnswer:
        """As ``Platform.edit``."""
        limits = self._deployment.profile.images
        received = receive_image(image, limits)
        message = await edit_message(received, receive_image(mask, limits) if mask is not None else None)
        drawn = await draw(self._deployment, self._call, _drawing_options(arguments), message, on_progress)
        return DrawingAnswer.model_validate(self._document(drawn))

    async def ask(self, arguments: AskArguments, images: Sequence[bytes]) -> Answer:
        """As ``Platform.ask``."""
        marks = [RegionPart(type="region", region=_mark(region)) for region in arguments.regions]
        words = TextPart(type="text", text=arguments.prompt)
        chat = ChatRequest(messages=[ChatMessage(role="user", content=[*marks, words])])
        uploads = [receive_image(image, self._deployment.profile.images) for image in images]
        completion = await complete_chat(self._deployment, self._call, chat, uploads)
        choice = completion.choices[0]
        return Answer.model_validate(
            {
                **choice.message.superlink.model_dump(exclude_none=True),
                "text": choice.message.content,
                "finish_reason": choice.finish_reason,
                "model": completion.model,
                "request_id": self.request_id,
            }
        )

    def _document(self, response: BaseModel) -> dict[str, Any]:
        """A response of the REST API as the SDK reads it."""
        return {**response.model_dump(), "request_id": self.request_id}


def _mark(region: Region) -> RegionMark:
    return RegionMark(box=region.box, points=region.points)


def _drawing_options(arguments: DrawArguments) -> GenerationOptions:
    given = arguments.model_dump(exclude={"image", "mask"})
    return GenerationOptions.model_validate(
        {
            **{name: value for name, value in given.items() if name not in _TUNING},
            "superlink": {name: value for name, value in given.items() if name in _TUNING},
        }
    )
