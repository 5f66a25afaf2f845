"""Results of tool calls that clients send back in ``tool`` messages, as the model reads results."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from gateway.chat_schema import ChatMessage, TextPart
from gateway.reported import observed_group
from gateway.results import DetectionResult, ImageSize
from gateway.tool_call_schema import CallArguments, CalledPhrase, ReturnedResult, StandardToolCall
from superlink.errors import SuperlinkError, invalid_argument, invalid_fields
from superlink.v1 import mllm_pb2


def called_phrases(call: StandardToolCall) -> list[CalledPhrase]:
    """What a call asks for. Raises SuperlinkError ``invalid_conversation`` for arguments that no answer has."""
    try:
        return CallArguments.model_validate_json(call.function.arguments).phrases
    except ValidationError as error:
        raise invalid_argument(
            "invalid_conversation", f"The arguments of the tool call {call.id} are not those of an answer."
        ) from error


def observation_of_results(
    calls: Sequence[StandardToolCall], messages: Sequence[ChatMessage], shown: ImageSize | None
) -> mllm_pb2.Observation:
    """The results of ``calls``, all of which ``messages`` must answer, in the order of the calls.

    ``shown`` is the size of the image that boxes are about, where a result does not say it. Raises SuperlinkError
    ``invalid_conversation`` or ``invalid_tool_result``.
    """
    results = {message.tool_call_id or "": message for message in messages}
    strays = [name for name in results if name not in {call.id for call in calls}]
    if strays:
        raise invalid_argument("invalid_conversation", f"No tool call before it has the id {strays[0]!r}.")
    missing = [call.id for call in calls if call.id not in results]
    if missing:
        raise invalid_argument(
            "invalid_conversation",
            f"Every tool call needs a tool message with its result; there is none for {missing[0]}.",
        )
    groups = [group for call in calls for group in _groups(call, result_of(results[call.id]), shown)]
    return mllm_pb2.Observation(groups=groups)


def result_of(message: ChatMessage) -> ReturnedResult:
    """The content of a ``tool`` message. Raises SuperlinkError ``invalid_tool_result``."""
    content = message.content
    text = content if isinstance(content, str) else "".join(_text(part, message) for part in content or ())
    try:
        result = ReturnedResult.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(message, invalid_fields(error.errors()).message) from error
    if all(given is None for given in (result.phrases, result.categories, result.data, result.error)):
        raise _invalid(message, "It has none of phrases, categories, data and error.")
    return result


def _groups(call: StandardToolCall, result: ReturnedResult, shown: ImageSize | None) -> list[mllm_pb2.ObservedGroup]:
    phrases = called_phrases(call)
    if result.error is not None:
        # Names of keypoints have another route than the things before them, and are nothing to count.
        failed = [entry for entry in phrases if entry.route == phrases[0].route]
        return [mllm_pb2.ObservedGroup(route=entry.route, phrase=entry.phrase, failed=True) for entry in failed]
    size = result.image or shown
    if result.phrases is not None:
        return [
            observed_group(entry.route, entry.phrase, entry.detections if entry.found else (), size)
            for entry in result.phrases
            # Known only of tools that find things.
            if entry.found is not None
        ]
    known = {entry.phrase: entry.found for entry in result.categories or ()}
    return [
        observed_group(entry.route, entry.phrase, _found(entry.phrase, result) if known[entry.phrase] else (), size)
        for entry in phrases
        if entry.phrase in known
    ]


def _found(phrase: str, result: ReturnedResult) -> list[DetectionResult]:
    """What a fast path found for ``phrase``."""
    of_phrase = [entry for entry in result.detections if entry.category == phrase]
    return [DetectionResult(bbox=entry.bbox, score=entry.score) for entry in of_phrase]


def _text(part: object, message: ChatMessage) -> str:
    if not isinstance(part, TextPart):
        raise _invalid(message, "It is text only.")
    return part.text


def _invalid(message: ChatMessage, reason: str) -> SuperlinkError:
    return invalid_argument(
        "invalid_tool_result",
        f"The content of the tool message for {message.tool_call_id} is no result: {reason} Send an entry of "
        'superlink.tool_calls, a response of /v1/detect, /v1/segment or /v1/pose, or {"error": "…"}, as JSON.',
    )
