"""What the tools are made of: Superlink, as the process that serves them reaches it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from superlink.mcp.arguments import AskArguments, EditArguments, FindArguments, GenerateArguments
from superlink.results import Answer, DetectionAnswer, DrawingAnswer

# Called with the steps that are done and their number.
OnProgress = Callable[[int, int], Awaitable[None]]


class Platform(Protocol):
    """Answers one call. Every failure is a SuperlinkError; cancelling a method cancels the work in every service."""

    # The id under which every process logs the call; empty as long as it is not known here.
    request_id: str

    async def decoders(self) -> Collection[str]:
        """The names of the deployed decoders, whether they are ready or not."""

    async def image(self, given: str) -> bytes:
        """The file bytes of an image as an agent gives it."""

    async def find(self, arguments: FindArguments, image: bytes) -> DetectionAnswer:
        """What is asked for, in ``image``; the type of ``arguments`` says by which tool."""

    async def generate(self, arguments: GenerateArguments, on_progress: OnProgress) -> DrawingAnswer:
        """Images from words."""

    async def edit(
        self, arguments: EditArguments, image: bytes, mask: bytes | None, on_progress: OnProgress
    ) -> DrawingAnswer:
        """``image``, changed."""

    async def ask(self, arguments: AskArguments, images: Sequence[bytes]) -> Answer:
        """An answer in words, with what tools found and made for it."""
