"""Earlier answers as the model wrote them, from what clients send back: phrases routed, results between the rounds."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.chat_schema import AnswerExtension, ChatMessage, TextPart
from gateway.reported import unread_results
from gateway.results import ImageSize, Span, observation_message
from gateway.tool_results import called_phrases, observation_of_results
from superlink.errors import invalid_argument
from superlink.v1 import mllm_pb2

# Between the words of a draft and the JSON that was written from them, as the orchestrator puts it.
_AFTER_DRAFT = "\n"
# Where in the text, phrases before observations, how much text it replaces, what it becomes.
_Mark = tuple[int, int, int, mllm_pb2.Part]


def words_of(message: ChatMessage) -> str:
    """The text of a message."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def replay(message: ChatMessage, results: Sequence[ChatMessage], shown: ImageSize | None) -> list[mllm_pb2.Part]:
    """The parts of an earlier answer, and of the ``tool`` messages behind it.

    What tools reported after the last round follows at the end, so that the next request can refer to it; what the
    client says they reported goes before what this platform did. ``shown`` is the size of the last image before the
    answer. Raises SuperlinkError for what no answer is.
    """
    extension = message.superlink or AnswerExtension()
    text = words_of(message)
    written = text if extension.draft is None else extension.draft
    parts = _parts(written, _marks(message, extension, written))
    if extension.draft is not None and text:
        follows_words = bool(written) and not written[-1].isspace() and not parts[-1].HasField("observation")
        parts.append(mllm_pb2.Part(text=f"{_AFTER_DRAFT}{text}" if follows_words else text))
    if results:
        observation = observation_of_results(message.tool_calls or (), results, shown)
        parts.append(mllm_pb2.Part(observation=observation))
        return parts
    unread = unread_results(extension, shown)
    if unread is not None:
        parts.append(mllm_pb2.Part(observation=unread))
    return parts


def _marks(message: ChatMessage, extension: AnswerExtension, text: str) -> list[_Mark]:
    marks: list[_Mark] = []
    for call in extension.tool_calls or ():
        for phrase in call.phrases:
            if phrase.span is not None:
                marks.append(_routed(phrase.span, phrase.route, phrase.phrase))
    if extension.tool_calls is None:
        # Clients that keep only what OpenAI's API has.
        for standard in message.tool_calls or ():
            for called in called_phrases(standard):
                # The draft that a span counts in is lost, like every field of the extension.
                fits = called.span is not None and text[called.span.start : called.span.end] == called.phrase
                span = called.span if called.span is not None and fits else Span(start=len(text), end=len(text))
                marks.append(_routed(span, called.route, called.phrase))
    for entry in extension.observations or ():
        observation = observation_message(entry)
        marks.append((entry.position, 1, entry.position, mllm_pb2.Part(observation=observation)))
    return marks


def _routed(span: Span, route: str, phrase: str) -> _Mark:
    return span.start, 0, span.end, mllm_pb2.Part(routed_phrase=mllm_pb2.RoutedPhrase(route=route, phrase=phrase))


def _parts(text: str, marks: Sequence[_Mark]) -> list[mllm_pb2.Part]:
    """``text`` cut at ``marks``."""
    parts: list[mllm_pb2.Part] = []
    cursor = 0
    for start, kind, end, part in sorted(marks, key=lambda mark: mark[:2]):
        if not cursor <= start <= end <= len(text):
            raise invalid_argument("invalid_conversation", "A span of an earlier answer does not fit its text.")
        if start > cursor:
            parts.append(mllm_pb2.Part(text=text[cursor:start]))
        parts.append(part)
        cursor = end
        if kind == 1 and text[cursor : cursor + 1] == "\n" and cursor and not text[cursor - 1].isspace():
            # The orchestrator's separator between rounds, which the model never wrote.
            cursor += 1
    if cursor < len(text):
        parts.append(mllm_pb2.Part(text=text[cursor:]))
    return parts
