from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.detection.model import Detector
from services.grounding.configuration import ClassTarget
from services.grounding.losses import assign, grounding_loss, match, varifocal_loss
from services.grounding.structures import GroundingOutputs, GroundingTargets
from tests.grounding.small import SMALL


def test_varifocal_loss_has_its_textbook_values() -> None:
    # p = 0.5: the target times the entropy for positives, 0.75 * 0.25 * ln 2 for a negative.
    values = varifocal_loss(torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))

    torch.testing.assert_close(values, torch.tensor([1.0, 0.5, 0.1875]) * np.log(2))


def test_varifocal_loss_wants_a_score_that_says_how_well_the_box_fits() -> None:
    logits = torch.linspace(-4, 4, 81)
    values = varifocal_loss(logits, torch.full_like(logits, 0.6))

    assert float(torch.sigmoid(logits[values.argmin()])) == pytest.approx(0.6, abs=0.02)


def test_matching_takes_the_right_queries_in_every_layer() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    logits = torch.full((1, 3, 2), -4.0)
    logits[0, 1, 0] = logits[0, 2, 1] = 4.0
    targets = GroundingTargets(
        boxes=torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]]),
        groups=torch.tensor([[[False, True], [True, False]]]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        normaliser=2.0,
    )

    matches = match(logits[None], boxes[None], targets)

    assert matches.tolist() == [[[-1, 1, 0]]]


def test_images_without_objects_still_teach_the_classes() -> None:
    torch.manual_seed(0)
    detector = Detector(SMALL).train()
    targets = GroundingTargets(
        boxes=torch.full((1, 1, 4), 0.5),
        groups=torch.zeros(1, 1, 3, dtype=torch.bool),
        mask=torch.zeros(1, 1, dtype=torch.bool),
        normaliser=1.0,
    )

    outputs = detector(
        detector.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), targets
    )
    terms = grounding_loss(outputs, targets, assign(outputs, targets), "overlap")

    assert terms["class"].item() > 0
    assert terms["box"].item() == 0


def test_gradients_reach_the_links_through_matching_and_denoising() -> None:
    torch.manual_seed(0)
    detector = Detector(SMALL).train()
    links = torch.randn(2, 3, 16, requires_grad=True)
    targets = GroundingTargets(
        boxes=torch.full((2, 1, 4), 0.4),
        groups=torch.tensor([[[True, False, False]], [[False, True, True]]]),
        mask=torch.ones(2, 1, dtype=torch.bool),
        normaliser=2.0,
    )

    outputs = detector(detector.encode(torch.randn(2, 3, 64, 64)), links, torch.ones(2, 3, dtype=torch.bool), targets)
    terms = grounding_loss(outputs, targets, assign(outputs, targets), "overlap")
    torch.stack(list(terms.values())).sum().backward()

    assert outputs.denoising_count == 8
    assert {"denoising_class", "denoising_box", "denoising_iou"} <= terms.keys()
    assert links.grad is not None
    assert bool((links.grad.abs().sum(dim=-1) > 0).all())


def one_thing() -> tuple[GroundingOutputs, GroundingTargets]:
    """What an untrained detector says of an image with one thing, which two links mean."""
    torch.manual_seed(0)
    detector = Detector(SMALL).eval()
    targets = GroundingTargets(
        torch.full((1, 1, 4), 0.4), torch.ones(1, 1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool), 1.0
    )
    outputs = detector(
        detector.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    )
    return outputs, targets


def test_losses_scale_with_the_normaliser() -> None:
    outputs, targets = one_thing()

    assignment = assign(outputs, targets)
    once = grounding_loss(outputs, targets, assignment, "overlap")
    halved = grounding_loss(outputs, replace(targets, normaliser=2.0), assignment, "overlap")

    for name, value in once.items():
        torch.testing.assert_close(value / 2, halved[name])


def test_a_score_learns_how_well_its_box_fits_or_only_that_it_is_right() -> None:
    outputs, targets = one_thing()
    assignment = assign(outputs, targets)
    elsewhere = replace(outputs, boxes=outputs.boxes * 0.5, proposal_boxes=outputs.proposal_boxes * 0.5)

    def class_term(of: GroundingOutputs, class_target: ClassTarget) -> float:
        return grounding_loss(of, targets, assignment, class_target)["class"].item()

    assert class_term(outputs, "match") == class_term(elsewhere, "match")
    assert class_term(outputs, "overlap") != class_term(elsewhere, "overlap")
