"""Figures of poses; docs/evaluation.md defines each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from services.evaluation.mean_iou import mean
from services.evaluation.outcomes import Outcome
from services.evaluation.scenes_set import POSE_TASK, PromptPhrase, SceneSet, SetCategory, SetImage
from services.trainer.keypoint_figures import oks_average_precision
from superlink.results import Keypoint


class Pose(BaseModel):
    """Keypoints of figures."""

    # Mean of ``by_kind``.
    oks_ap50: float | None
    # COCO's AP at an object keypoint similarity of 0.5, by the category's name.
    by_kind: dict[str, float | None]


def pose_figures(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> Pose:
    """All figures of poses; None where nothing was asked. Every prompt counts as an image of its own."""
    by_kind: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.prompt.task == POSE_TASK and (kind := _thing(outcome).category_id) is not None:
            by_kind.setdefault(kind, []).append(outcome)
    figures = {scene_set.categories[kind].name: _oks_ap50(scene_set, kind, by_kind[kind]) for kind in sorted(by_kind)}
    return Pose(oks_ap50=mean(figures.values()), by_kind=dict(figures))


def _thing(outcome: Outcome) -> PromptPhrase:
    """The phrase that names whose pose is meant; the others name keypoints."""
    return next(phrase for phrase in outcome.prompt.phrases if phrase.keypoint is None)


def _oks_ap50(scene_set: SceneSet, kind: int, outcomes: Sequence[Outcome]) -> float:
    category = scene_set.categories[kind]
    shown = [outcome.prompt.image_id for outcome in outcomes]
    images = [scene_set.images[image_id] for image_id in shown if image_id is not None]
    truths = [
        {
            "image_id": number,
            "bbox": list(annotation.bbox),
            "area": annotation.area,
            "keypoints": list(annotation.keypoints),
        }
        for number, outcome in enumerate(outcomes)
        for annotation in (scene_set.annotations[entry] for entry in _thing(outcome).annotation_ids)
    ]
    found = [
        {"image_id": number, **find}
        for number, (outcome, image) in enumerate(zip(outcomes, images, strict=True))
        for find in _finds(outcome, category, image)
    ]
    _, ap50 = oks_average_precision([(image.height, image.width) for image in images], truths, found, category.sigmas)
    return ap50


def _finds(outcome: Outcome, category: SetCategory, image: SetImage) -> Iterator[dict[str, Any]]:
    """What the tool found for the right words, with its keypoints in the category's order."""
    thing = _thing(outcome)
    words = {phrase.keypoint: phrase.phrase for phrase in outcome.prompt.phrases}
    # So far from every figure that it adds nothing to the similarity: a keypoint that was not asked for by its words.
    away = Keypoint(name="", x=-2.0 * image.width, y=-2.0 * image.height, score=0.0)
    for result in outcome.routed:
        if (result.route, result.phrase) != (thing.route, thing.phrase):
            continue
        for (_, score), keypoints in zip(result.found, result.keypoints, strict=True):
            named: Mapping[str, Keypoint] = {keypoint.name: keypoint for keypoint in keypoints}
            placed = [named.get(words[key], away) for key in category.keypoints]
            flat = [value for keypoint in placed for value in (keypoint.x, keypoint.y, keypoint.score)]
            yield {"score": score, "keypoints": flat}
