from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.detection.model import Detector
from services.grounding.configuration import Calibration
from services.grounding.structures import GroundingOptions
from services.runtime.weights import WeightsError
from tests.grounding.small import SMALL


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

    [result] = detector.decode(outputs, [prepared.original_size], [3], [GroundingOptions(score_threshold=0.0)])

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

    [result] = calibrated.decode(outputs, [(64, 64)], [5], [GroundingOptions()])

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
