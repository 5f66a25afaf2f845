"""From the messages of a chat request to the conversation that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.chat_schema import AnswerExtension, ChatMessage, ChatRequest, RegionPart, TextPart
from gateway.images import ReceivedImage, receive_data_url
from gateway.made_images import has_images, last_image
from gateway.regions import region_message
from gateway.reported import unread_results
from gateway.results import observation_message
from superlink.errors import invalid_argument
from superlink.profile import Profile
from superlink.regions import MOST_REGIONS
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2

# As in OpenAI's API; every one of them is looked for after every token.
MAX_STOP_TEXTS = 4

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


def translate(chat: ChatRequest, uploads: Sequence[ReceivedImage], profile: Profile, request_id: str) -> Question:
    """``chat`` as a request to the orchestrator; ``uploads`` belong to its last message.

    Raises SuperlinkError where the request asks for what this API does not do, or exceeds a limit of ``profile``.
    """
    _refuse_unsupported(chat)
    _check_text(chat.messages, profile.gateway.max_prompt_characters)
    messages: list[mllm_pb2.Message] = []
    images: list[ReceivedImage] = []
    # Of the images that tools made only the last one is sent on: it is what later turns are about, and a conversation
    # about one picture must not end at the limit of images.
    makers = [message for message in chat.messages if message.role == "assistant" and has_images(message)]
    last_maker = makers[-1] if makers else None
    for message in chat.messages:
        if message.role == "assistant":
            parts = _replay(message)
            found = [last_image(message, profile.images)] if message is last_maker else []
            parts += [mllm_pb2.Part(image=image.message) for image in found]
        else:
            given = list(uploads) if message is chat.messages[-1] else []
            parts, found = _user_parts(message, given, images, profile)
        images += found
        messages.append(mllm_pb2.Message(role=_ROLES[message.role], parts=parts))
    if sum(part.HasField("region") for message in messages for part in message.parts) > MOST_REGIONS:
        raise invalid_argument("too_many_regions", f"A conversation may mark {MOST_REGIONS} regions at most.")
    if len(images) > profile.mllm.max_images:
        raise invalid_argument(
            "too_many_images",
            f"The conversation has {len(images)} images; the limit is {profile.mllm.max_images}.",
        )
    options = chat.superlink
    request = orchestrator_pb2.AnswerRequest(
        request_id=request_id,
        messages=messages,
        sampling=_sampling(chat),
        max_rounds=options.max_rounds,
        detection=decoder_pb2.DetectionOptions(
            score_threshold=options.score_threshold, max_detections=options.max_detections
        ),
        diffusion=options.drawing.to_message(),
    )
    return Question(request, images[-1] if images else None)


def _refuse_unsupported(chat: ChatRequest) -> None:
    refused = {
        "n": chat.n not in (None, 1),
        "frequency_penalty": bool(chat.frequency_penalty),
        "presence_penalty": bool(chat.presence_penalty),
        "logit_bias": bool(chat.logit_bias),
        "logprobs": bool(chat.logprobs),
        "top_logprobs": bool(chat.top_logprobs),
        "tools": bool(chat.tools),
        "tool_choice": chat.tool_choice not in (None, "none", "auto"),
        "response_format": chat.response_format not in (None, {"type": "text"}),
        "store": bool(chat.store),
    }
    names = [name for name, is_refused in refused.items() if is_refused]
    if names:
        raise invalid_argument(
            "unsupported_parameter", f"This API does not support: {', '.join(names)}. Leave it out, or set n to 1."
        )


def _check_text(messages: Sequence[ChatMessage], max_characters: int) -> None:
    last = messages[-1]
    if last.role != "user":
        raise invalid_argument("invalid_request", "The last message must be the user's.")
    if not _text(last).strip():
        raise invalid_argument("empty_prompt", "The last message has no text. Say what you want to know.")
    length = sum(len(_text(message)) for message in messages)
    if length > max_characters:
        raise invalid_argument(
            "prompt_too_long", f"The messages have {length:,} characters of text; the limit is {max_characters:,}."
        )


def _text(message: ChatMessage) -> str:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _user_parts(
    message: ChatMessage, uploads: list[ReceivedImage], earlier: Sequence[ReceivedImage], profile: Profile
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
            raise invalid_argument("invalid_request", "Only user messages can show images and mark regions.")
        if isinstance(part, RegionPart):
            shown = [*earlier, *images]
            if not shown:
                raise invalid_argument("region_without_image", "A region marks nothing: no image comes before it.")
            parts.append(mllm_pb2.Part(region=region_message(part.region, shown[-1])))
            continue
        image = receive_data_url(part.image_url.url, profile.images)
        images.append(image)
        parts.append(mllm_pb2.Part(image=image.message))
    return parts, images


def _replay(message: ChatMessage) -> list[mllm_pb2.Part]:
    """An earlier answer as the model wrote it: its phrases routed, its observations between the rounds.

    What tools reported after the last round follows at the end, so that the next request can refer to it.
    """
    text = _text(message)
    extension = message.superlink or AnswerExtension()
    # (where in the text, phrases before observations, how much text it replaces, what it becomes)
    marks: list[tuple[int, int, int, mllm_pb2.Part]] = []
    for call in extension.tool_calls or ():
        for phrase in call.phrases:
            if phrase.span is not None:
                routed = mllm_pb2.RoutedPhrase(route=phrase.route, phrase=phrase.phrase)
                marks.append((phrase.span.start, 0, phrase.span.end, mllm_pb2.Part(routed_phrase=routed)))
    for entry in extension.observations or ():
        observation = observation_message(entry)
        marks.append((entry.position, 1, entry.position, mllm_pb2.Part(observation=observation)))
    parts: list[mllm_pb2.Part] = []
    cursor = 0
    for start, kind, end, part in sorted(marks, key=lambda mark: mark[:2]):
        if not cursor <= start <= end <= len(text):
            raise invalid_argument("invalid_request", "A span of an earlier answer does not fit its text.")
        if start > cursor:
            parts.append(mllm_pb2.Part(text=text[cursor:start]))
        parts.append(part)
        cursor = end
        if kind == 1 and text[cursor : cursor + 1] == "\n" and cursor and not text[cursor - 1].isspace():
            # The orchestrator's separator between rounds, which the model never wrote.
            cursor += 1
    if cursor < len(text):
        parts.append(mllm_pb2.Part(text=text[cursor:]))
    unread = unread_results(extension)
    if unread is not None:
        parts.append(mllm_pb2.Part(observation=unread))
    return parts


def _sampling(chat: ChatRequest) -> mllm_pb2.Sampling:
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if len(stop) > MAX_STOP_TEXTS:
        raise invalid_argument("invalid_request", f"stop has {len(stop)} texts; the limit is {MAX_STOP_TEXTS}.")
    return mllm_pb2.Sampling(
        temperature=chat.temperature or 0.0,
        top_p=chat.top_p or 0.0,
        seed=chat.seed or 0,
        max_new_tokens=min(chat.max_completion_tokens or chat.max_tokens or 0, 2**31),
        stop=stop,
    )
