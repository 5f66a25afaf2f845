"""The answer so far: its visible text over all rounds, and the assistant message that the next round goes on from."""

from __future__ import annotations

from collections.abc import Iterable

from superlink.v1 import mllm_pb2, types_pb2

# Stands between the rounds of an answer, so that "dog" and "There are 3." do not run together, unless the model itself
# ended the earlier round with white space. Visible text only: the model never sees it.
ROUND_SEPARATOR = "\n"


class Transcript:
    """Follows one answer. Spans that come in count from the start of a round's text, those that go out from the start
    of the whole visible answer; both in Unicode code points.
    """

    def __init__(self, earlier_parts: Iterable[mllm_pb2.Part] = ()) -> None:
        """``earlier_parts``: what the conversation's last, unfinished assistant message already holds."""
        self._parts: list[mllm_pb2.Part] = list(earlier_parts)
        self._visible_length = 0
        self._last_visible = ""
        self._round_offset = 0
        self._round_text = ""
        self._round_groups: list[types_pb2.LinkGroup] = []

    def add_text(self, text: str) -> str:
        """Append text of the current round; returns what to show, which may start with a separator."""
        shown = text
        if not self._round_text and text:
            shown = self._separator + text
        self._round_text += text
        self._visible_length += len(shown)
        self._last_visible = shown[-1:] or self._last_visible
        return shown

    def add_group(self, group: types_pb2.LinkGroup) -> types_pb2.LinkGroup:
        """Append a group of the current round; returns it with its span moved to the whole answer."""
        self._round_groups.append(group)
        moved = types_pb2.LinkGroup()
        moved.CopyFrom(group)
        if group.HasField("span"):
            moved.span.start += self._round_offset
            moved.span.end += self._round_offset
        return moved

    @property
    def _separator(self) -> str:
        """What the next round's text starts with."""
        return ROUND_SEPARATOR if self._last_visible and not self._last_visible.isspace() else ""

    def open_message(self) -> mllm_pb2.Message:
        """The assistant message so far, to be gone on with: a draft, and the place for what is written from it."""
        parts = [*self._parts, *round_parts(self._round_text, self._round_groups)]
        if self._round_text and not self._round_text[-1].isspace():
            parts.append(mllm_pb2.Part(text=ROUND_SEPARATOR))
        return mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=parts)

    def close_round(self, observation: mllm_pb2.Observation) -> mllm_pb2.Message:
        """End the round with what the tools answered; returns the assistant message so far."""
        self._parts += round_parts(self._round_text, self._round_groups)
        self._parts.append(mllm_pb2.Part(observation=observation))
        self._round_offset = self._visible_length + len(self._separator)
        self._round_text = ""
        self._round_groups = []
        return mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=self._parts)


def round_parts(text: str, groups: Iterable[types_pb2.LinkGroup]) -> list[mllm_pb2.Part]:
    """A round's text cut at its groups: every phrase becomes a routed phrase where it stood.

    A group whose span is unset, or lies in text that an earlier group took, follows without text of its own.
    """
    parts: list[mllm_pb2.Part] = []
    cursor = 0
    for group in groups:
        if group.HasField("span") and cursor <= group.span.start <= group.span.end <= len(text):
            if group.span.start > cursor:
                parts.append(mllm_pb2.Part(text=text[cursor : group.span.start]))
            cursor = group.span.end
        parts.append(mllm_pb2.Part(routed_phrase=mllm_pb2.RoutedPhrase(route=group.route, phrase=group.phrase)))
    if cursor < len(text):
        parts.append(mllm_pb2.Part(text=text[cursor:]))
    return parts
