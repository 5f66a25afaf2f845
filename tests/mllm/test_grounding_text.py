"""Boxes in text as InternVL writes them: the published vectors, and both ways for anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mllm.grounding_text import Grounded, parse_grounded, pixels, thousandths, write_grounded

pytestmark = pytest.mark.internvl

coordinates = st.integers(0, 1000)
# Below a sum of four a box reads as fractions of the sides.
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates).filter(lambda box: sum(box) >= 4)
phrases = st.text(min_size=1, max_size=30).filter(
    lambda text: text == text.strip() and not any(token in text for token in ("<ref>", "</ref>", "<box>", "</box>"))
)


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ((104, 300, 238, 478), (427, 640), (244, 469, 557, 747)),
        ((10, 20, 30, 40), (800, 600), (12, 33, 38, 67)),
        ((0, 0, 640, 480), (640, 480), (0, 0, 1000, 1000)),
        # Halves go to the even neighbour.
        ((0.5, 1.5, 2.5, 3.5), (1000, 1000), (0, 2, 2, 4)),
    ],
)
def test_published_boxes(
    box: tuple[float, float, float, float], size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert thousandths(box, *size) == expected


@given(box=boxes, width=st.integers(1, 8192), height=st.integers(1, 8192))
def test_pixels_come_back_to_the_same_thousandths(box: tuple[int, int, int, int], width: int, height: int) -> None:
    assert thousandths(pixels(box, width, height), width, height) == box


@given(phrase=phrases | st.just(""), found=st.lists(boxes, min_size=1, max_size=5), before=phrases, after=phrases)
def test_what_was_written_is_read(phrase: str, found: list[tuple[int, int, int, int]], before: str, after: str) -> None:
    text = write_grounded(phrase, found)
    (span,) = parse_grounded(f"{before} {text} {after}")
    assert span.grounded == Grounded(phrase, tuple(found))
    assert f"{before} {text} {after}"[span.start : span.end] == text
    rewritten = write_grounded(span.grounded.phrase, [tuple(map(int, box)) for box in span.grounded.boxes])
    assert rewritten == text


@given(st.text(alphabet="<>/refbox[]0123456789,. -", max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    for span in parse_grounded(text):
        assert 0 <= span.start < span.end <= len(text)
        assert all(len(box) == 4 for box in span.grounded.boxes)


def test_white_space_several_boxes_and_several_phrases() -> None:
    text = (
        "See <ref>two dogs </ref> <box>[ [1, 2,300,4] ,[5,6 , 7,8]]</box> and <ref>a cat</ref><box>[[9,9,99,99]]</box>."
        " In <box>[[10, 20, 30, 40]]</box> nothing, and <ref>the end</ref><box>[[1, 2"
    )
    assert [span.grounded for span in parse_grounded(text)] == [
        Grounded("two dogs", ((1, 2, 300, 4), (5, 6, 7, 8))),
        Grounded("a cat", ((9, 9, 99, 99),)),
        Grounded("", ((10, 20, 30, 40),)),
    ]


def test_fractions_of_the_sides_become_thousandths() -> None:
    (span,) = parse_grounded("<ref>dog</ref><box>[[0.25, 0.5, 0.75, 1.0]]</box>")
    assert span.grounded.boxes == ((250, 500, 750, 1000),)


def test_a_phrase_without_a_box_of_its_own_lends_none() -> None:
    (span,) = parse_grounded("<ref>cat</ref> and <ref>dog</ref><box>[[1,2,3,4]]</box>")
    assert span.grounded.phrase == "dog"


@pytest.mark.parametrize(
    ("phrase", "found", "named"),
    [
        ("dog", [], "needs a box"),
        ("dog", [(0, 0, 1001, 5)], "1001"),
        ("dog", [(-1, 0, 10, 5)], "-1"),
        ("a <box>", [(0, 0, 10, 5)], "tokens"),
    ],
)
def test_what_cannot_be_written_is_refused(phrase: str, found: list[tuple[int, int, int, int]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        write_grounded(phrase, found)


def test_corners_outside_the_image_move_to_its_edge() -> None:
    assert thousandths((-5, -1, 700, 240), 640, 480) == (0, 0, 1000, 500)
    with pytest.raises(ValueError, match="0x480"):
        thousandths((0, 0, 1, 1), 0, 480)
