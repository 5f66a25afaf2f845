from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.detection.boxes import generalised_iou, plain_iou, suppress_duplicates, to_centres, to_corners
from services.detection.configuration import Calibration, DetectorConfig
from services.detection.losses import detection_loss, match, varifocal_loss
from services.detection.model import Detector
from services.detection.structures import DetectionTargets, DetectorOptions
from services.runtime.weights import WeightsError

SMALL = DetectorConfig(
    image_side=64,
    width=32,
    heads=2,
    backbone_base_channels=16,
    feed_forward_width=32,
    encoder_layers=2,
    decoder_layers=2,
    sampling_points=2,
    queries=12,
    denoising_queries=8,
    link_width=16,
    vocabulary=6,
    vocabulary_radius=2.0,
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(SMALL).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 5, 16, generator=generator)


@torch.no_grad()
def test_permuting_the_phrases_permutes_the_scores(
    detector: Detector, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, links = inputs
    mask = torch.ones(2, 5, dtype=torch.bool)
    order = torch.tensor([3, 0, 4, 1, 2])
    features = detector.encode(pixels)

    plain = detector(features, links, mask)
    permuted = detector(features, links[:, order], mask)

    torch.testing.assert_close(permuted.logits, plain.logits[..., order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(permuted.boxes, plain.boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masked_groups_never_matter(detector: Detector, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, links = inputs
    features = detector.encode(pixels)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 3:] = False
    junk = links.clone()
    junk[:, 3:] = 100.0

    alone = detector(features, links[:, :3], torch.ones(2, 3, dtype=torch.bool))
    padded = detector(features, junk, mask)

    torch.testing.assert_close(padded.logits[..., :3], alone.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_batch_gives_what_each_image_gives_alone(
    detector: Detector, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, links = inputs
    mask = torch.ones(2, 5, dtype=torch.bool)

    together = detector(detector.encode(pixels), links, mask)
    alone = detector(detector.encode(pixels[1:]), links[1:], mask[1:])

    torch.testing.assert_close(together.logits[:, 1:], alone.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_vocabulary_stands_beside_the_links_but_for_rows_that_mean_the_same(
    detector: Detector, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, links = inputs
    rows = detector.vocabulary.weight
    features = detector.encode(pixels[:1])
    close = torch.stack([links[0, 0], rows[4] + 0.1])[None]
    without = Detector(SMALL.model_copy(update={"vocabulary": 0})).eval()
    without.load_state_dict(detector.state_dict() | without.vocabulary.state_dict(prefix="vocabulary."))

    found = detector(features, close, torch.ones(1, 2, dtype=torch.bool))
    spelled_out = torch.cat([close, rows[None, [0, 1, 2, 3, 5]]], dim=1)
    expected = without(features, spelled_out, torch.ones(1, 7, dtype=torch.bool))

    assert found.logits.shape == (2, 1, 12, 2)
    assert found.proposal_logits.shape == (1, 12, 2)
    assert found.link_mask.shape == (1, 2)
    torch.testing.assert_close(found.logits, expected.logits[..., :2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
    alone = without(features, close, torch.ones(1, 2, dtype=torch.bool))
    assert not torch.allclose(alone.logits, found.logits, atol=1e-2)


@torch.no_grad()
def test_results_are_in_pixels_of_the_original(detector: Detector) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    prepared = detector.prepare(image)
    outputs = detector(
        detector.encode(prepared.pixels[None]), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool)
    )

    [result] = detector.decode(outputs, [prepared.original_size], [3], [DetectorOptions(score_threshold=0.0)])

    assert prepared.original_size == (90, 160)
    assert result.boxes.min() >= 0
    assert (result.boxes <= np.array([160, 90, 160, 90])).all()
    assert (np.diff(result.scores) <= 0).all()
    assert result.presence_scores.shape == (3,)


@torch.no_grad()
def test_what_is_there_has_a_box_and_what_is_not_there_has_none(
    detector: Detector, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, links = inputs
    outputs = detector(detector.encode(pixels[:1]), links[:1], torch.ones(1, 5, dtype=torch.bool))
    best = outputs.logits[-1, 0].amax(dim=0)
    # No candidate reaches the limit of the boxes; two of the five phrases reach that of presence.
    limit = best.sort().values[-3:-1].mean().item()
    calibrated = Detector(
        SMALL.model_copy(
            update={
                "detection_calibration": Calibration(scale=1, bias=-50),
                "presence_calibration": Calibration(scale=50, bias=-50 * limit),
            }
        )
    )

    [result] = calibrated.decode(outputs, [(64, 64)], [5], [DetectorOptions()])

    assert result.presence_found.sum() == 2
    assert sorted(result.groups.tolist()) == np.flatnonzero(result.presence_found).tolist()
    assert result.scores == pytest.approx(np.sort(result.presence_scores[result.presence_found])[::-1])


def test_saving_and_loading_gives_the_same_detector(tmp_path: Path, detector: Detector) -> None:
    detector.save(tmp_path)

    loaded = Detector.load(tmp_path)

    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config == detector.config


def test_weights_that_do_not_fit_are_named(tmp_path: Path, detector: Detector) -> None:
    detector.save(tmp_path)
    save_file({"nonsense": torch.zeros(1)}, tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match=r"missing.*unknown \(nonsense\)"):
        Detector.load(tmp_path)


def test_varifocal_loss_has_its_textbook_values() -> None:
    # p = 0.5: the target times the entropy for positives, 0.75 * 0.25 * ln 2 for a negative.
    values = varifocal_loss(torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))

    torch.testing.assert_close(values, torch.tensor([1.0, 0.5, 0.1875]) * np.log(2))


def test_varifocal_loss_wants_a_score_that_says_how_well_the_box_fits() -> None:
    logits = torch.linspace(-4, 4, 81)
    values = varifocal_loss(logits, torch.full_like(logits, 0.6))

    assert float(torch.sigmoid(logits[values.argmin()])) == pytest.approx(0.6, abs=0.02)


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


def test_matching_takes_the_right_queries_in_every_layer() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    logits = torch.full((1, 3, 2), -4.0)
    logits[0, 1, 0] = logits[0, 2, 1] = 4.0
    targets = DetectionTargets(
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
    targets = DetectionTargets(
        boxes=torch.full((1, 1, 4), 0.5),
        groups=torch.zeros(1, 1, 3, dtype=torch.bool),
        mask=torch.zeros(1, 1, dtype=torch.bool),
        normaliser=1.0,
    )

    outputs = detector(
        detector.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), targets
    )
    terms = detection_loss(outputs, targets)

    assert terms["class"].item() > 0
    assert terms["box"].item() == 0


def test_gradients_reach_the_links_through_matching_and_denoising() -> None:
    torch.manual_seed(0)
    detector = Detector(SMALL).train()
    links = torch.randn(2, 3, 16, requires_grad=True)
    targets = DetectionTargets(
        boxes=torch.full((2, 1, 4), 0.4),
        groups=torch.tensor([[[True, False, False]], [[False, True, True]]]),
        mask=torch.ones(2, 1, dtype=torch.bool),
        normaliser=2.0,
    )

    outputs = detector(detector.encode(torch.randn(2, 3, 64, 64)), links, torch.ones(2, 3, dtype=torch.bool), targets)
    terms = detection_loss(outputs, targets)
    torch.stack(list(terms.values())).sum().backward()

    assert outputs.denoising_count == 8
    assert {"denoising_class", "denoising_box", "denoising_iou"} <= terms.keys()
    assert links.grad is not None
    assert bool((links.grad.abs().sum(dim=-1) > 0).all())


def test_losses_scale_with_the_normaliser() -> None:
    torch.manual_seed(0)
    detector = Detector(SMALL).eval()
    targets = DetectionTargets(
        torch.full((1, 1, 4), 0.4), torch.ones(1, 1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool), 1.0
    )
    outputs = detector(
        detector.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    )

    once = detection_loss(outputs, targets)
    halved = detection_loss(outputs, DetectionTargets(targets.boxes, targets.groups, targets.mask, 2.0))

    for name, value in once.items():
        torch.testing.assert_close(value / 2, halved[name])
