"""Where edits belong, and sketches put there."""

from __future__ import annotations

import pytest
import torch

from services.diffusion.finder import Places
from services.diffusion.placing import (
    THING_SHARE,
    Square,
    free_square,
    lay_out,
    marked_squares,
    place_sketches,
    square_around,
)

SIDE = 16
SURE = 10.0


def places(named: torch.Tensor, things: torch.Tensor, *, new: bool = False, added: bool = False) -> Places:
    """One edit; maps of 0 and 1, verdicts that are sure."""

    def logits(shown: torch.Tensor) -> torch.Tensor:
        return (shown[None] - 0.5) * 2 * SURE

    return Places(logits(named), logits(things), *(torch.tensor([SURE if is_so else -SURE]) for is_so in (new, added)))


def patch(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    region = torch.zeros(SIDE, SIDE)
    region[top:bottom, left:right] = 1
    return region


NO_MARK = torch.zeros(1, 1, SIDE, SIDE)


def test_every_connected_part_has_a_square_the_largest_first() -> None:
    region = patch(0, 2, 0, 4) + patch(8, 16, 8, 12)
    assert marked_squares(region) == [Square(0.625, 0.75, 0.25, 0.25), Square(0.125, 0.0625, 0.125, 0.125)]


def test_nothing_marked_has_no_square() -> None:
    assert marked_squares(torch.zeros(SIDE, SIDE)) == []


def test_what_is_added_goes_where_nothing_is() -> None:
    taken = patch(0, SIDE, 0, 9) + patch(9, SIDE, 9, SIDE)
    square = free_square(taken)
    assert square.middle_x - square.reach_x >= 9 / SIDE - 1e-6
    assert square.middle_y + square.reach_y <= 9 / SIDE + 1e-6


def test_an_edit_reaches_what_it_names_and_a_little_around() -> None:
    dog = patch(4, 8, 4, 8)
    layout = lay_out(places(dog, dog), NO_MARK)
    assert (layout.region[0, 0] > 0.5).equal(dog > 0)
    reached = layout.reach[0, 0]
    assert float(reached[3:9, 3:9].min()) == 1
    assert float(reached.sum()) == pytest.approx(36, abs=0.1)
    # It puts in nothing new.
    assert layout.squares == [[]]


def test_a_replacement_has_the_square_of_what_it_replaces() -> None:
    dog = patch(4, 8, 4, 8)
    layout = lay_out(places(dog, dog, new=True), NO_MARK)
    assert layout.squares == [[square_around(0.25, 0.25, 0.5, 0.5)]]


def test_an_addition_gets_a_free_place() -> None:
    dog = patch(0, SIDE, 0, 8)
    layout = lay_out(places(torch.zeros(SIDE, SIDE), dog, new=True, added=True), NO_MARK)
    (square,) = layout.squares[0]
    assert square.middle_x > 0.5
    assert not layout.region[0, 0][:, :8].any()


def test_what_the_user_marks_goes_before_what_the_tool_finds() -> None:
    dog = patch(4, 8, 4, 8)
    mark = patch(10, 12, 10, 12)
    layout = lay_out(places(dog, dog, new=True), mark[None, None])
    assert torch.equal(layout.region[0, 0], mark)
    assert layout.squares == [[square_around(0.625, 0.625, 0.75, 0.75)]]
    assert layout.reach.all()


def test_an_edit_whose_place_nobody_finds_may_reach_everything() -> None:
    nothing = torch.zeros(SIDE, SIDE)
    assert lay_out(places(nothing, nothing), NO_MARK).reach.all()


def test_a_placed_sketch_fills_its_square_and_leaves_the_rest() -> None:
    # A thing of ones on a ground of twos.
    sketch = torch.full((1, 1, SIDE, SIDE), 2.0)
    edge = round(SIDE * (1 - THING_SHARE) / 2)
    sketch[..., edge:-edge, edge:-edge] = 1
    canvas, cover = place_sketches(sketch, [[square_around(0.0, 0.0, 0.5, 0.5)]], SIDE, SIDE)
    assert float(canvas[0, 0, 1:7, 1:7].sub(1).abs().max()) < 1e-5
    assert not canvas[0, 0, 10:].any()
    assert not cover[0, 0, :, 10:].any()
    assert cover[0, 0, :8, :8].all()


def test_sketches_without_a_place_are_nowhere() -> None:
    canvas, cover = place_sketches(torch.ones(2, 3, SIDE, SIDE), [[], []], 4, 6)
    assert canvas.shape == (2, 3, 4, 6)
    assert not canvas.any()
    assert not cover.any()


def test_sketches_of_a_batch_stay_apart() -> None:
    sketches = torch.stack([torch.full((1, SIDE, SIDE), value) for value in (1.0, 2.0)])
    square = square_around(0.25, 0.25, 0.75, 0.75)
    canvas, _ = place_sketches(sketches, [[square], [square, square_around(0.0, 0.0, 0.25, 0.25)]], SIDE, SIDE)
    assert float(canvas[0].max()) == pytest.approx(1)
    assert float(canvas[1].max()) == pytest.approx(2)
    assert float(canvas[0, 0, 1, 1]) == 0
    assert float(canvas[1, 0, 1, 1]) == pytest.approx(2)
