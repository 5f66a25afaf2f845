"""From the messages of a chat request to the conversation that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from gateway.calls import Call
from gateway.chat_options import checked_schema_of, leaves_calls_to_client, refuse_unsupported, sampling_of, tools_of
from gateway.chat_schema import ChatMessage, ChatRequest, FilePart, ImagePart, RegionPart, TextPart
from gateway.deployment import Deployment
from gateway.image_sources import load_images
from gateway.images import ReceivedImage, receive_address
from gateway.made_images import last_made
from gateway.regions import region_message
from gateway.replay import replay, words_of
from gateway.results import ImageSize
from superlink.errors import invalid_argument
from superlink.profile import Profile
from superlink.regions import MOST_REGIONS
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2

_ROLES = {
    "system": mllm_pb2.ROLE_SYSTEM,
    "developer": mllm_pb2.ROLE_SYSTEM,
    "user": mllm_pb2.ROLE_USER,
    "assistant": mllm_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True)
class Question:
    """A chat request, checked and translated."""

    request: orchestrator_pb2.AnswerRequest
    # The image that tools look at: the last one of all.
    image: ReceivedImage | None


async def translate(
    chat: ChatRequest, uploads: Sequence[ReceivedImage], deployment: Deployment, call: Call
) -> Question:
    """``chat`` as a request to the orchestrator; ``uploads`` belong to its last message.

    Raises SuperlinkError where the request asks for what this API does not do, exceeds a limit, or an image cannot be
    loaded.
    """
    profile = deployment.profile
    refuse_unsupported(chat)
    _check_order(chat.messages, uploads)
    _check_text(chat.messages, profile.gateway.max_prompt_characters)
    # Of the images that tools made only the last one is sent on: it is what later turns are about, and a conversation
    # about one picture must not end at the limit of images.
    made = last_made(chat.messages)
    addresses = [*_shown(chat.messages), *([made.address] if made is not None else [])]
    # Before any of them is fetched or decoded.
    if len(uploads) + len(addresses) > profile.mllm.max_images:
        raise invalid_argument(
            "too_many_images",
            f"The conversation has {len(uploads) + len(addresses)} images; the limit is {profile.mllm.max_images}.",
        )
    fetched = await load_images(deployment, call, addresses)
    messages: list[mllm_pb2.Message] = []
    images: list[ReceivedImage] = []
    for place, message in enumerate(chat.messages):
        if message.role == "tool":
            # Read with the answer that it belongs to.
            continue
        if message.role == "assistant":
            results = list(takewhile(lambda each: each.role == "tool", chat.messages[place + 1 :]))
            parts = replay(message, results, _size_of(images))
            found: list[ReceivedImage] = []
            if made is not None and any(each is made.message for each in (message, *results)):
                found.append(receive_address(made.address, profile.images, fetched))
            parts += [mllm_pb2.Part(image=image.message) for image in found]
        else:
            given = list(uploads) if message is chat.messages[-1] else []
            parts, found = _user_parts(message, given, images, fetched, profile)
        images += found
        if message.role == "assistant" and place and chat.messages[place - 1].role == "tool":
            # The same answer goes on from its results.
            messages[-1].parts.extend(parts)
        else:
            messages.append(mllm_pb2.Message(role=_ROLES[message.role], parts=parts))
    if sum(part.HasField("region") for message in messages for part in message.parts) > MOST_REGIONS:
        raise invalid_argument("too_many_regions", f"A conversation may mark {MOST_REGIONS} regions at most.")
    options = chat.superlink
    request = orchestrator_pb2.AnswerRequest(
        request_id=call.request_id,
        messages=messages,
        sampling=sampling_of(chat),
        max_rounds=options.max_rounds,
        detection=decoder_pb2.DetectionOptions(
            score_threshold=options.score_threshold, max_detections=options.max_detections
        ),
        diffusion=options.drawing.to_message(),
        tools=tools_of(chat, profile.decoders),
        ends_at_tool_calls=leaves_calls_to_client(chat),
        json_schema=await checked_schema_of(chat),
    )
    return Question(request, images[-1] if images else None)


def _check_order(messages: Sequence[ChatMessage], uploads: Sequence[ReceivedImage]) -> None:
    last = messages[-1]
    if last.role not in ("user", "tool"):
        raise invalid_argument("invalid_conversation", "The last message must be the user's, or a tool's.")
    if uploads and last.role == "tool":
        raise invalid_argument("invalid_conversation", "Uploaded images belong to the last message, which is a tool's.")
    for place, message in enumerate(messages):
        if message.role == "tool" and (place == 0 or messages[place - 1].role not in ("assistant", "tool")):
            raise invalid_argument(
                "invalid_conversation", "A tool's message must follow the answer that called the tool."
            )


def _size_of(images: Sequence[ReceivedImage]) -> ImageSize | None:
    return ImageSize(width=images[-1].width, height=images[-1].height) if images else None


def _check_text(messages: Sequence[ChatMessage], max_characters: int) -> None:
    last = messages[-1]
    if last.role == "user" and not words_of(last).strip():
        raise invalid_argument("empty_prompt", "The last message has no text. Say what you want to know.")
    # Results are data, which the model reads in a few words.
    length = sum(len(words_of(message)) for message in messages if message.role != "tool")
    if length > max_characters:
        raise invalid_argument(
            "prompt_too_long", f"The messages have {length:,} characters of text; the limit is {max_characters:,}."
        )


def _shown(messages: Sequence[ChatMessage]) -> list[str]:
    """The addresses of the images that users show."""
    contents = [message.content for message in messages if message.role == "user"]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part.address for part in parts if isinstance(part, ImagePart | FilePart)]


def _user_parts(
    message: ChatMessage,
    uploads: list[ReceivedImage],
    earlier: Sequence[ReceivedImage],
    fetched: Mapping[str, ReceivedImage],
    profile: Profile,
) -> tuple[list[mllm_pb2.Part], list[ReceivedImage]]:
    """The parts of a message and its images; ``earlier`` are those of the messages before it."""
    images = list(uploads)
    parts = [mllm_pb2.Part(image=image.message) for image in uploads]
    content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    for part in content or ():
        if isinstance(part, TextPart):
            parts.append(mllm_pb2.Part(text=part.text))
            continue
        if message.role != "user":
            raise invalid_argument("invalid_conversation", "Only user messages can show images and mark regions.")
        if isinstance(part, RegionPart):
            shown = [*earlier, *images]
            if not shown:
                raise invalid_argument("region_without_image", "A region marks nothing: no image comes before it.")
            parts.append(mllm_pb2.Part(region=region_message(part.region, shown[-1])))
            continue
        image = receive_address(part.address, profile.images, fetched)
        images.append(image)
        parts.append(mllm_pb2.Part(image=image.message))
    return parts, images
