"""The answer's pure parts, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_workers import detection, detections

from orchestrator.catalogue import ToolRoute
from orchestrator.deadline import Deadline
from orchestrator.observations import observe, thousandths
from orchestrator.tool_calls import PendingCall, ToolOutcome
from orchestrator.transcript import ROUND_SEPARATOR, Transcript, round_parts
from superlink.errors import SuperlinkError
from superlink.v1 import decoder_pb2, mllm_pb2, types_pb2

# A round: plain text and phrases in turn.
ROUNDS = st.lists(
    st.lists(st.tuples(st.text("ab 狗🙂", max_size=4), st.text("xy猫", min_size=1, max_size=3)), max_size=3),
    min_size=1,
    max_size=4,
)


def link(phrase: str, start: int, end: int) -> types_pb2.LinkGroup:
    return types_pb2.LinkGroup(route="[DET]", phrase=phrase, span=types_pb2.Span(start=start, end=end))


@given(ROUNDS)
def test_spans_always_point_at_their_phrases(rounds: list[list[tuple[str, str]]]) -> None:
    transcript = Transcript()
    shown, moved = "", []
    for pieces in rounds:
        length = 0
        for plain, phrase in pieces:
            shown += transcript.add_text(plain) + transcript.add_text(phrase)
            length += len(plain) + len(phrase)
            moved.append(transcript.add_group(link(phrase, length - len(phrase), length)))
        transcript.close_round(mllm_pb2.Observation())

    assert all(shown[group.span.start : group.span.end] == group.phrase for group in moved)


@given(ROUNDS)
def test_the_model_reads_back_exactly_what_it_wrote(rounds: list[list[tuple[str, str]]]) -> None:
    transcript = Transcript()
    message = mllm_pb2.Message()
    for pieces in rounds:
        length = 0
        for plain, phrase in pieces:
            transcript.add_text(plain + phrase)
            length += len(plain) + len(phrase)
            transcript.add_group(link(phrase, length - len(phrase), length))
        message = transcript.close_round(mllm_pb2.Observation())

    written = "".join(plain + phrase for pieces in rounds for plain, phrase in pieces)
    assert "".join(part.text + part.routed_phrase.phrase for part in message.parts) == written
    assert sum(part.HasField("observation") for part in message.parts) == len(rounds)


def test_a_span_reported_before_its_text_is_still_right() -> None:
    transcript = Transcript()
    transcript.add_text("One.")
    transcript.close_round(mllm_pb2.Observation())

    group = transcript.add_group(link("dog", 0, 3))

    assert transcript.add_text("dog") == f"{ROUND_SEPARATOR}dog"
    assert (group.span.start, group.span.end) == (5, 8)


def test_rounds_are_divided_once() -> None:
    transcript = Transcript()
    shown = transcript.add_text("A dog. ")
    transcript.close_round(mllm_pb2.Observation())
    shown += transcript.add_text("One")
    shown += transcript.add_text(" dog.")
    transcript.close_round(mllm_pb2.Observation())

    group = transcript.add_group(link("Done", 0, 4))
    shown += transcript.add_text("Done.")

    assert shown == "A dog. One dog.\nDone."
    assert shown[group.span.start : group.span.end] == "Done"


def test_a_group_without_a_place_follows_the_text_before_it() -> None:
    parts = round_parts("A dog", [link("dog", 2, 5), types_pb2.LinkGroup(route="[SEG]", phrase="dog")])

    assert [part.WhichOneof("part") for part in parts] == ["text", "routed_phrase", "routed_phrase"]


def test_an_unfinished_answer_is_continued() -> None:
    earlier = [mllm_pb2.Part(text="So far. ")]
    transcript = Transcript(earlier)
    transcript.add_text("More.")

    message = transcript.close_round(mllm_pb2.Observation())

    assert [part.text for part in message.parts[:2]] == ["So far. ", "More."]


@pytest.mark.parametrize(
    ("coordinate", "side", "expected"),
    [(0, 640, 0), (640, 640, 1000), (320.4, 640, 501), (-3, 640, 0), (700, 640, 1000)],
)
def test_coordinates_become_thousandths(coordinate: float, side: int, expected: int) -> None:
    assert thousandths(coordinate, side) == expected


def outcome(found: types_pb2.Detections | None, phrases: str = "ab", score_threshold: float = 0.3) -> ToolOutcome:
    groups = tuple(types_pb2.LinkGroup(route="[DET]", phrase=phrase) for phrase in phrases)
    route = ToolRoute("[DET]", "detection", "1", decoder_pb2.INPUT_MODE_LINK, 0, score_threshold)
    return ToolOutcome(PendingCall("call_0", route, groups), found)


def test_only_what_counts_as_present_is_observed() -> None:
    event = detections([detection(0, 0.4), detection(1, 0.95), detection(0, 0.8)], 2, absent=[1])

    observation = observe([outcome(event.detections)])

    assert [len(group.objects) for group in observation.groups] == [2, 0]
    assert [round(each.score, 2) for each in observation.groups[0].objects] == [0.8, 0.4]


def test_what_the_decoder_would_not_report_by_itself_is_not_counted() -> None:
    event = detections([detection(0, 0.4), detection(0, 0.6)])

    observation = observe([outcome(event.detections, "a", score_threshold=0.5)])

    assert [round(each.score, 2) for each in observation.groups[0].objects] == [0.6]


def test_a_failed_call_is_observed_as_failed() -> None:
    observation = observe([outcome(None)])

    assert [(group.phrase, group.failed, len(group.objects)) for group in observation.groups] == [
        ("a", True, 0),
        ("b", True, 0),
    ]


def test_a_hop_gets_what_is_left_without_a_reserve_for_the_answer() -> None:
    assert Deadline(10).for_hop() == pytest.approx(9.5, abs=0.01)
    assert Deadline(60).for_hop() == pytest.approx(59.5, abs=0.01)
    assert Deadline(0.4).for_hop() == pytest.approx(0.35, abs=0.01)
    assert Deadline(10).for_hop(share=0.5) == pytest.approx(4.75, abs=0.01)
    assert Deadline(10).for_hop(cap_s=2) == 2
    with pytest.raises(SuperlinkError, match="ran out of time"):
        Deadline(0.01).for_hop()
