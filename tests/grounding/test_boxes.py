from __future__ import annotations

import torch

from services.grounding.boxes import generalised_iou, plain_iou, suppress_duplicates, to_centres, to_corners


def test_generalised_iou_has_its_textbook_values() -> None:
    first = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])

    # The same box; half of it shared; two units of hull between them.
    torch.testing.assert_close(generalised_iou(first, others), torch.tensor([1.0, 1 / 3, -1 / 3]))
    torch.testing.assert_close(to_corners(to_centres(others)), others)


def test_plain_iou_is_the_shared_part_of_the_union() -> None:
    first = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])

    torch.testing.assert_close(plain_iou(first, others), torch.tensor([1.0, 1 / 3, 0.0]))


def test_a_thing_found_twice_is_reported_once() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0], [5.0, 0.0, 15.0, 10.0]]
    )

    keep = suppress_duplicates(boxes, torch.tensor([0.8, 0.9, 0.5, 0.4]), 0.7)

    assert keep.tolist() == [False, True, True, True]
