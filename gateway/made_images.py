"""Images that tools made in earlier answers, which clients send back so that the conversation can go on about them."""

from __future__ import annotations

from gateway.chat_schema import ChatMessage, ImagePart
from gateway.tool_results import result_of


def has_images(message: ChatMessage) -> bool:
    """Whether a message of an assistant or a tool shows images."""
    return bool(_addresses(message))


def last_image(message: ChatMessage) -> str:
    """The address of the last image of a message that has one."""
    return _addresses(message)[-1]


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
