"""Calibrates a decoder that grounds phrases: its scores become probabilities, and 0.5 the best place to decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from services.grounding.boxes import suppress_duplicates, to_corners
from services.grounding.configuration import Calibration
from services.grounding.network import STRIDES, GroundingDecoder
from services.trainer.scenes.categories import CATEGORY_INDEX
from services.trainer.scenes.choosing import maybe_present
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Category, Scene

Grounding = GroundingDecoder[Any]
# What a scene is asked for: its row in the decoder's vocabulary, and what the row means.
Choice = Callable[[Scene, np.random.Generator], tuple[int, Category]]

# Scenes that calibrate a decoder: apart from training, validation and the fixed evaluation set.
_FIRST_SEED = 3_000_000_000
# Share of scenes that are asked for something that is there; between what questions of presence and of number ask.
_PRESENT = 0.7
# Candidates below this logit never decide anything.
_LEAST_LOGIT = -6.0
_MATCH_IOU = 0.5


@dataclass(frozen=True)
class Answer:
    """What the decoder said about one thing that one scene was asked for."""

    # [queries] logits, highest first, and whether each candidate is a new right one.
    logits: NDArray[np.float32]
    right: NDArray[np.bool_]
    # Things of this kind in the scene.
    count: int


def choose_category(scene: Scene, rng: np.random.Generator) -> tuple[int, Category]:
    """A category, there or not."""
    category = maybe_present(scene, rng, _PRESENT)
    return CATEGORY_INDEX[category.key], category


def calibration_scenes(compose: Callable[[int], Scene], count: int) -> list[Scene]:
    """``count`` scenes that nothing was trained on; ``compose`` makes one of its seed."""
    return [compose(_FIRST_SEED + number) for number in range(count)]


def calibrate(
    decoder: Grounding,
    links_of: Callable[[Scene, list[int]], Tensor],
    scenes: Sequence[Scene],
    choose: Choice = choose_category,
) -> None:
    """Fit both calibrations of ``decoder`` on scenes and store them in its configuration.

    ``links_of`` gives the link embeddings ``[rows, link_width]`` of rows of the vocabulary asked about a scene.

    Presence: a logistic fit of "is there at all" on the best logit. Detection: the slope is that of a logistic fit of
    "is a right box" on the logit; the offset puts 0.5 where most categories are counted exactly, among those that are
    called present: these are reported with one box at least, the others without any.
    """
    answers = ask(decoder, links_of, scenes, choose)
    best = np.array([answer.logits[0] for answer in answers])
    presence_scale, presence_bias = fit_logistic(best, np.array([answer.count > 0 for answer in answers]))
    scale, _ = fit_logistic(
        np.concatenate([answer.logits for answer in answers]), np.concatenate([answer.right for answer in answers])
    )
    found = [answer for answer in answers if presence_scale * answer.logits[0] + presence_bias >= 0] or answers
    candidates = np.linspace(-3.0, 2.0, 101)
    exact = np.array(
        [np.mean([max(1, (answer.logits >= limit).sum()) == answer.count for answer in found]) for limit in candidates]
    )
    # The curve is flat at its top and the sample small: of all limits that are as good within its noise, the middle.
    noise = float(np.sqrt(exact.max() * (1 - exact.max()) / len(found)))
    limit = float(np.mean(candidates[exact >= exact.max() - noise]))
    decoder.config = decoder.config.model_copy(
        update={
            "detection_calibration": Calibration(scale=scale, bias=-scale * limit),
            "presence_calibration": Calibration(scale=presence_scale, bias=presence_bias),
        }
    )


def fit_logistic(values: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and bias of ``sigmoid(scale * value + bias)`` by maximum likelihood (Platt scaling)."""
    inputs, wanted = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.binary_cross_entropy_with_logits(parameters[0] * inputs + parameters[1], wanted)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    scale, bias = parameters.tolist()
    return scale, bias


@torch.no_grad()
def ask(
    decoder: Grounding, links_of: Callable[[Scene, list[int]], Tensor], scenes: Sequence[Scene], choose: Choice
) -> list[Answer]:
    """What ``decoder`` says about one thing of every scene, asked alone as questions of presence and number ask."""
    decoder.eval()
    answers = []
    device = decoder.logit_bias.device
    for scene in scenes:
        row, category = choose(scene, np.random.default_rng((scene.seed, 5)))
        features = decoder.encode(decoder.prepare(scene.image).pixels[None].to(device))
        links = links_of(scene, [row])[None]
        outputs = decoder.ground(features[-len(STRIDES) :], links, torch.ones(1, 1, dtype=torch.bool, device=device))
        boxes = to_corners(outputs.boxes[-1, 0].cpu()) * max(scene.height, scene.width)
        logits = outputs.logits[-1, 0, :, 0].cpu()
        single = suppress_duplicates(boxes, logits, decoder.config.duplicate_iou)
        truths = [scene.objects[index].box for index in members(scene, category)]
        answers.append(_judge(logits[single], boxes[single], torch.tensor(truths).reshape(-1, 4)))
    return answers


def _judge(logits: Tensor, boxes: Tensor, truths: Tensor) -> Answer:
    """Match candidates to true boxes, best first; each true box is found once."""
    order = logits.argsort(descending=True)
    order = order[: max(1, int((logits[order] > _LEAST_LOGIT).sum()))]
    free = list(range(truths.shape[0]))
    right = []
    for candidate in order.tolist():
        overlaps = [_iou(boxes[candidate], truths[index]) for index in free]
        hit = bool(overlaps) and max(overlaps) >= _MATCH_IOU
        if hit:
            free.pop(int(np.argmax(overlaps)))
        right.append(hit)
    return Answer(logits[order].numpy(), np.array(right), truths.shape[0])


def _iou(first: Tensor, second: Tensor) -> float:
    sides = (torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])).clamp(min=0)
    shared = float(sides.prod())
    return shared / (float((first[2:] - first[:2]).prod()) + float((second[2:] - second[:2]).prod()) - shared)
