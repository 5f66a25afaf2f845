"""Images that tools made in earlier answers, which clients send back so that the conversation can go on about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.chat_schema import ChatMessage, ImagePart
from gateway.tool_results import result_of


@dataclass(frozen=True)
class LastMade:
    """The last image that a tool made."""

    # Of an assistant or a tool: the one that shows it.
    message: ChatMessage
    address: str


def last_made(messages: Sequence[ChatMessage]) -> LastMade | None:
    """The last image of all that ``messages`` of assistants and tools show. Raises what ``result_of`` raises."""
    last = None
    for message in messages:
        addresses = _addresses(message) if message.role in ("assistant", "tool") else []
        if addresses:
            last = LastMade(message, addresses[-1])
    return last


def _addresses(message: ChatMessage) -> list[str]:
    """Of the extension's results, as data URLs, and of OpenAI's content parts for clients that keep nothing else."""
    if message.role == "tool":
        result = result_of(message)
        made = [*(image for phrase in result.phrases or () for image in phrase.images), *(result.data or ())]
        return [f"data:image/png;base64,{image.b64_json}" for image in made]
    calls = (message.superlink.tool_calls or []) if message.superlink is not None else []
    results = [image.b64_json for call in calls for phrase in call.phrases for image in phrase.images]
    content = message.content if isinstance(message.content, list) else []
    return [
        *(f"data:image/png;base64,{encoded}" for encoded in results),
        *(part.image_url.url for part in content if isinstance(part, ImagePart)),
    ]
