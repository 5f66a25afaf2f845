from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.grounding.structures import GroundingOptions
from services.pose.keypoint_decoder import KeypointDecoder
from services.pose.losses import keypoint_similarity, object_similarity, pose_loss
from services.pose.model import PoseEstimator
from services.pose.structures import PoseOutputs
from tests.pose.small import CONFIG, targets

# Two things, then three keypoints.
NAMES_KEYPOINT = torch.tensor([False, False, True, True, True]).expand(2, -1)


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    torch.manual_seed(0)
    return PoseEstimator(CONFIG).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 5, 16, generator=generator)


def assert_same(found: PoseOutputs, expected: PoseOutputs, keypoints: slice | list[int] = slice(None)) -> None:
    """``found`` is ``expected``, with its keypoints taken in another order."""
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.boxes, expected.boxes, **close)
    torch.testing.assert_close(found.keypoints, expected.keypoints[:, :, :, keypoints], **close)
    torch.testing.assert_close(found.confidences, expected.confidences[..., keypoints], **close)


@torch.no_grad()
def test_keypoints_follow_the_order_in_which_they_are_asked_for(
    estimator: PoseEstimator, inputs: tuple[Tensor, Tensor]
) -> None:
    pixels, links = inputs
    features, mask = estimator.encode(pixels), torch.ones(2, 5, dtype=torch.bool)

    plain = estimator(features, links, mask, NAMES_KEYPOINT)
    permuted = estimator(features, links[:, [1, 0, 4, 2, 3]], mask, NAMES_KEYPOINT)

    assert plain.keypoints.shape == (3, 2, 5, 3, 2)
    assert plain.confidences.shape == (2, 2, 5, 3)
    assert not torch.allclose(plain.keypoints[-1, :, :, 0], plain.keypoints[-1, :, :, 1], atol=1e-4)
    assert_same(permuted, plain, [2, 0, 1])
    torch.testing.assert_close(permuted.logits, plain.logits[..., [1, 0]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_neither_padding_nor_company_changes_a_pose(estimator: PoseEstimator, inputs: tuple[Tensor, Tensor]) -> None:
    pixels, links = inputs
    features, mask = estimator.encode(pixels), torch.ones(2, 5, dtype=torch.bool)
    junk = torch.cat([links, torch.full((2, 3, 16), 100.0)], dim=1)
    unreal = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    names_keypoint = torch.cat([NAMES_KEYPOINT, torch.tensor([False, True, True]).expand(2, -1)], dim=1)
    # The first image is asked for one thing and one keypoint; the second keeps all.
    fewer = torch.cat([links[:1, [0, 2, 1, 3, 4]], links[1:]])
    few = torch.tensor([[True, True, False, False, False], [True] * 5])
    few_names = torch.stack([torch.tensor([False, True, True, True, True]), NAMES_KEYPOINT[1]])

    plain = estimator(features, links, mask, NAMES_KEYPOINT)
    padded = estimator(features, junk, unreal, names_keypoint)
    mixed = estimator(features, fewer, few, few_names)
    alone = estimator(tuple(level[1:] for level in features), links[1:], mask[1:], NAMES_KEYPOINT[1:])

    assert_same(padded, plain)
    torch.testing.assert_close(mixed.keypoints[:, 1], plain.keypoints[:, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.keypoints[:, 0], plain.keypoints[:, 1], atol=1e-4, rtol=1e-4)
    assert mixed.keypoint_mask.tolist() == [[True, False, False], [True, True, True]]


@torch.no_grad()
@pytest.mark.parametrize("keypoints", [0, 1, 4])
def test_a_query_sees_its_own_group_and_no_masked_keypoint(keypoints: int) -> None:
    """What an instance or a keypoint changes: its group alone, of the size of the request, whatever it is."""
    torch.manual_seed(0)
    decoder = KeypointDecoder(CONFIG, levels=3).eval()
    shapes = torch.tensor([[8, 8], [4, 4], [2, 2]])
    memory, states, boxes = torch.randn(1, 84, 32), torch.randn(1, 3, 32), torch.rand(1, 3, 4) * 0.3 + 0.3
    links, mask = torch.randn(1, keypoints + 1, 16), torch.ones(1, keypoints + 1, dtype=torch.bool)
    mask[:, -1] = False

    def run(states: Tensor, links: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        placed_boxes, places, confidences = decoder(states, boxes, links, mask, memory, shapes)
        return placed_boxes, places[:, :, :, :-1], confidences[..., :-1]

    def moved(first: Tensor, second: Tensor) -> list[bool]:
        """Which of the three instances differ in the last layer."""
        return [not torch.allclose(first[-1, 0, place], second[-1, 0, place], atol=1e-6) for place in range(3)]

    plain = run(states, links)
    other_instance = run(torch.cat([states[:, :2], torch.randn(1, 1, 32)], dim=1), links)
    other_masked = run(states, torch.cat([links[:, :-1], torch.randn(1, 1, 16)], dim=1))

    assert moved(other_instance[0], plain[0]) == [False, False, True]
    assert moved(other_masked[0], plain[0]) == [False, False, False]
    if keypoints:
        other_keypoint = run(states, torch.cat([torch.randn(1, 1, 16), links[:, 1:]], dim=1))
        assert moved(other_instance[1], plain[1]) == [False, False, True]
        assert moved(other_masked[1], plain[1]) == [False, False, False]
        assert moved(other_keypoint[0], plain[0]) == [True, True, True]


@torch.no_grad()
def test_an_answer_lies_in_the_image_and_has_every_keypoint(estimator: PoseEstimator) -> None:
    prepared = estimator.prepare(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    links, mask = torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    outputs = estimator(estimator.encode(prepared.pixels[None]), links, mask, NAMES_KEYPOINT[:1])

    [result] = estimator.decode(
        outputs, [prepared.original_size], [5], [GroundingOptions(score_threshold=0.0, most_finds=8)]
    )

    assert result.presence_scores.shape == (2,)
    assert 0 < len(result.boxes) == len(result.keypoints) <= 8
    assert set(result.groups.tolist()) <= {0, 1}
    assert (np.diff(result.scores) <= 0).all()
    assert result.keypoints.shape[1:] == (3, 3)
    assert (result.keypoints >= 0).all()
    assert (result.keypoints <= (160, 90, 1)).all()
    assert (result.boxes <= (160, 90, 160, 90)).all()


@torch.no_grad()
def test_rows_of_keypoints_never_stand_beside_things(estimator: PoseEstimator, inputs: tuple[Tensor, Tensor]) -> None:
    pixels, links = inputs
    changed = PoseEstimator(CONFIG).eval()
    changed.load_state_dict(estimator.state_dict())
    changed.vocabulary.weight[2:] = 50.0
    mask = torch.ones(2, 5, dtype=torch.bool)

    before = estimator(estimator.encode(pixels), links, mask, NAMES_KEYPOINT)
    after = changed(changed.encode(pixels), links, mask, NAMES_KEYPOINT)

    assert_same(after, before)


def test_saving_and_loading_gives_the_same_estimator(tmp_path: Path, estimator: PoseEstimator) -> None:
    estimator.save(tmp_path)

    loaded = PoseEstimator.load(tmp_path)

    for name, tensor in estimator.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config == estimator.config
    assert loaded.spec == estimator.spec
    assert loaded.spec.routes == ("[POSE_OBJECT]", "[POSE]")


def test_object_keypoint_similarity_has_its_textbook_value() -> None:
    wanted = torch.tensor([[[10.0, 10.0], [20.0, 20.0], [0.0, 0.0]]])
    found = wanted + torch.tensor([[[3.0, 4.0], [0.0, 0.0], [99.0, 0.0]]])
    labelled = torch.tensor([[True, True, False]])

    similarity = keypoint_similarity(found, wanted, torch.tensor([100.0]), torch.tensor([[0.25, 0.1, 0.1]]))

    # exp(-25 / (2 * 100 * 0.5 ** 2)) = exp(-0.5); the unlabelled keypoint counts for nothing.
    torch.testing.assert_close(similarity[0, :2], torch.tensor([0.60653066, 1.0]))
    torch.testing.assert_close(object_similarity(similarity, labelled), torch.tensor([0.80326533]))


def outputs_at(places: Tensor, confidence: float) -> PoseOutputs:
    """Outputs of a single layer whose first instance is the thing of ``targets``, with keypoints at ``places``."""
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]]).expand(2, 2, 2, 4)
    keypoints = torch.cat([places, torch.zeros_like(places)], dim=1).expand(2, 2, 2, 3, 2)
    return PoseOutputs(
        grounding=None,
        logits=torch.tensor([[9.0, -9], [-9, -9]]).expand(2, 2, 2),
        boxes=boxes,
        keypoints=keypoints,
        confidences=torch.full((1, 2, 2, 3), confidence),
        keypoint_mask=torch.ones(2, 3, dtype=torch.bool),
    )


def test_a_perfect_pose_costs_nothing_but_what_cannot_be_known() -> None:
    truth = targets()
    sure = outputs_at(truth.keypoints, 20.0)

    terms = pose_loss(sure, truth)
    all_visible = pose_loss(sure, replace(truth, visible=torch.ones_like(truth.visible)))

    for name in ("instance_box", "instance_iou", "keypoint", "oks"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5)
    # To be sure of a hidden keypoint is wrong.
    assert terms["confidence"].item() > 1
    assert all_visible["confidence"].item() == pytest.approx(0, abs=1e-5)


def test_the_keypoint_and_similarity_terms_have_their_reference_values() -> None:
    truth = targets()

    terms = pose_loss(outputs_at(truth.keypoints + 0.1, 0.0), truth)

    # Two images, a normaliser of 2 and two layers, the start and one more: every term counts twice.
    assert terms["keypoint"].item() == pytest.approx(2 * 10 * 3 * 2 * 0.1, rel=1e-4)
    similarities = [np.exp(-0.02 / (2 * 0.2 * (2 * sigma) ** 2)) for sigma in (0.05, 0.1, 0.2)]
    assert terms["oks"].item() == pytest.approx(2 * 4 * (1 - np.mean(similarities)), rel=1e-4)


def test_sigmas_belong_to_keypoints_not_to_places_in_the_request() -> None:
    truth = targets()
    order = [2, 0, 1]
    moved = truth.keypoints + torch.tensor([[0.05, 0.0], [0.0, 0.1], [0.02, 0.02]])
    shuffled = replace(
        truth,
        keypoints=truth.keypoints[:, :, order],
        labelled=truth.labelled[:, :, order],
        visible=truth.visible[:, :, order],
        sigmas=truth.sigmas[:, order],
    )

    plain = pose_loss(outputs_at(moved, 0.5), truth)
    permuted = pose_loss(outputs_at(moved[:, :, order], 0.5), shuffled)

    for name in plain:
        torch.testing.assert_close(permuted[name], plain[name])


def test_near_doubles_of_a_matched_instance_learn_keypoints_too() -> None:
    """The second instance matches nothing; where its box is all but the thing's, its keypoints count as well."""
    truth = targets()
    plain = outputs_at(truth.keypoints + 0.1, 0.0)
    near = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.52, 0.5, 0.5, 0.5]]).expand(2, 2, 2, 4)
    keypoints = (truth.keypoints + 0.1).expand(2, 2, 3, 2).expand(2, 2, 2, 3, 2)

    alone = pose_loss(plain, truth)
    doubled = pose_loss(replace(plain, boxes=near, keypoints=keypoints), truth)

    for name in ("keypoint", "oks", "confidence"):
        assert doubled[name].item() == pytest.approx(2 * alone[name].item(), rel=1e-4)
    assert doubled["instance_box"].item() == pytest.approx(alone["instance_box"].item(), abs=1e-5)


def test_poses_are_learned_and_teach_the_links() -> None:
    torch.manual_seed(0)
    estimator = PoseEstimator(CONFIG).train()
    pixels, links = torch.randn(2, 3, 64, 64), torch.randn(2, 5, 16, requires_grad=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    optimiser = torch.optim.Adam(estimator.parameters(), lr=5e-3)
    history = []

    for step in range(20):
        terms = estimator.loss(estimator(estimator.encode(pixels), links, mask, NAMES_KEYPOINT, targets()), targets())
        if step == 0:
            (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), links, retain_graph=True)
            assert bool((gradient.abs().sum(dim=-1) > 0).all())
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        history.append((terms["keypoint"] + terms["oks"]).item())

    assert {"class", "box", "denoising_class", "keypoint", "oks", "confidence"} <= terms.keys()
    assert history[-1] < 0.6 * history[0]


def test_an_image_without_things_teaches_no_pose_and_loses_none() -> None:
    torch.manual_seed(0)
    estimator = PoseEstimator(CONFIG).train()
    nothing = replace(
        targets(), mask=torch.zeros(2, 1, dtype=torch.bool), groups=torch.zeros(2, 1, 2, dtype=torch.bool)
    )
    links, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)

    terms = pose_loss(
        estimator(estimator.encode(torch.randn(2, 3, 64, 64)), links, mask, NAMES_KEYPOINT, nothing), nothing
    )
    torch.stack(list(terms.values())).sum().backward()

    assert all(term.item() == 0 for term in terms.values())
    assert estimator.keypoint_decoder.keypoint_head[0].weight.grad is not None
