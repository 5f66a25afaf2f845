"""Images of a conversation: those that users show, and those that tools made in earlier answers."""

from __future__ import annotations

from collections.abc import Iterable

from superlink.v1 import mllm_pb2, types_pb2


def latest_image(messages: Iterable[mllm_pb2.Message]) -> types_pb2.Image | None:
    """The last image of all, whoever it came from: the one that tools look at."""
    images = [part.image for message in messages for part in message.parts if part.HasField("image")]
    return images[-1] if images else None


def shown_by_users(messages: Iterable[mllm_pb2.Message]) -> list[mllm_pb2.Message]:
    """``messages`` with the images of every answer moved to the start of the user message that follows it.

    The model reads images where users show them, and a picture that was made is what the next request is about.
    """
    shown: list[mllm_pb2.Message] = []
    made: list[mllm_pb2.Part] = []
    for message in messages:
        parts = list(message.parts)
        if message.role == mllm_pb2.ROLE_ASSISTANT:
            made += [part for part in parts if part.HasField("image")]
            parts = [part for part in parts if not part.HasField("image")]
        elif message.role == mllm_pb2.ROLE_USER:
            parts, made = [*made, *parts], []
        shown.append(mllm_pb2.Message(role=message.role, parts=parts))
    return shown
