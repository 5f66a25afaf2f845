"""Images that tools made in earlier answers, which clients send back so that the conversation can go on about them."""

from __future__ import annotations

from gateway.chat_schema import ChatMessage, ImagePart
from gateway.images import ReceivedImage, receive_data_url
from superlink.profile import ImageLimits


def has_images(message: ChatMessage) -> bool:
    """Whether an assistant message shows images."""
    return bool(_addresses(message))


def last_image(message: ChatMessage, limits: ImageLimits) -> ReceivedImage:
    """The last image of a message that has one. Raises what ``receive_data_url`` raises."""
    return receive_data_url(_addresses(message)[-1], limits)


def _addresses(message: ChatMessage) -> list[str]:
    """Data URLs: of the extension's results, and of OpenAI's content parts for clients that keep nothing else."""
    calls = (message.superlink.tool_calls or []) if message.superlink is not None else []
    results = [image.b64_json for call in calls for phrase in call.phrases for image in phrase.images]
    content = message.content if isinstance(message.content, list) else []
    return [
        *(f"data:image/png;base64,{encoded}" for encoded in results),
        *(part.image_url.url for part in content if isinstance(part, ImagePart)),
    ]
