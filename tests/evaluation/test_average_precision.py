from __future__ import annotations

import numpy as np
import pytest

from services.evaluation.average_precision import (
    FoundBox,
    PromptBoxes,
    TrueBox,
    average_precision,
    intersection_over_union,
)
from services.evaluation.scenes_set import encode_mask

BOX = (10.0, 10.0, 40.0, 40.0)
FAR = (100.0, 100.0, 40.0, 40.0)
# IoU with BOX: 40 x 32 of 40 x 40, that is 0.8.
SHORTER = (10.0, 10.0, 40.0, 32.0)


def truth(category: int, box=BOX) -> TrueBox:
    return TrueBox(category, box, box[2] * box[3])


def found(category: int, box=BOX, score: float = 0.9) -> FoundBox:
    return FoundBox(category, box, score)


def test_perfect_boxes_have_ap_one() -> None:
    measured = average_precision([PromptBoxes((truth(1), truth(1, FAR)), (found(1), found(1, FAR, 0.8)))])
    assert measured.ap == pytest.approx(1.0)
    assert measured.ap50 == pytest.approx(1.0)


def test_an_overlap_of_four_fifths_counts_at_seven_of_ten_thresholds() -> None:
    measured = average_precision([PromptBoxes((truth(1),), (found(1, SHORTER),))])
    assert measured.ap == pytest.approx(0.7)
    assert measured.ap50 == pytest.approx(1.0)


def test_half_of_the_things_found_halves_ap() -> None:
    measured = average_precision([PromptBoxes((truth(1), truth(1, FAR)), (found(1),))])
    # COCO samples precision at 101 recalls; 51 of them are at most 0.5.
    assert measured.ap50 == pytest.approx(51 / 101)


def test_a_prompted_category_that_is_absent_contributes_false_positives() -> None:
    alarm = PromptBoxes((), (found(1, score=0.99),))
    hit = PromptBoxes((truth(1),), (found(1, score=0.5),))
    assert average_precision([hit]).ap50 == pytest.approx(1.0)
    assert average_precision([hit, alarm]).ap50 == pytest.approx(0.5)


def test_weaker_false_positives_do_not_hurt() -> None:
    hit = PromptBoxes((truth(1),), (found(1, score=0.9),))
    assert average_precision([hit, PromptBoxes((), (found(1, score=0.1),))]).ap50 == pytest.approx(1.0)


def test_prompts_on_the_same_image_do_not_disturb_each_other() -> None:
    twice = [PromptBoxes((truth(1),), (found(1),)), PromptBoxes((truth(1),), (found(1),))]
    assert average_precision(twice).ap == pytest.approx(1.0)


def test_the_mean_is_over_categories() -> None:
    measured = average_precision([PromptBoxes((truth(1), truth(2)), (found(1),))])
    assert measured.ap50 == pytest.approx(0.5)


def test_nothing_to_find_is_no_figure_and_nothing_found_is_zero() -> None:
    assert average_precision([PromptBoxes((), (found(1),))]).ap is None
    assert average_precision([PromptBoxes((truth(1),), ())]).ap == 0.0


def test_intersection_over_union() -> None:
    assert intersection_over_union(BOX, BOX) == 1.0
    assert intersection_over_union(BOX, FAR) == 0.0
    assert intersection_over_union(BOX, SHORTER) == pytest.approx(0.8)
    assert intersection_over_union((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_a_mask_of_what_is_absent_contributes_a_false_positive() -> None:
    mask = encode_mask(np.ones((50, 60), dtype=np.bool_)).model_dump()
    hit = PromptBoxes((TrueBox(1, BOX, 3000, mask),), (FoundBox(1, BOX, 0.5, mask),))
    alarm = PromptBoxes((), (FoundBox(1, BOX, 0.99, mask),))
    assert average_precision([hit], "segm").ap50 == pytest.approx(1.0)
    assert average_precision([hit, alarm], "segm").ap50 == pytest.approx(0.5)
