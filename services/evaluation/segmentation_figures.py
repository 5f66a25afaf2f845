"""Figures of masks; docs/evaluation.md defines each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import BaseModel

from services.evaluation.average_precision import FoundBox, PromptBoxes, TrueBox, average_precision
from services.evaluation.mean_iou import Mask, MeanIou, mask_iou, mean
from services.evaluation.outcomes import (
    INTERACTIVE_TASK,
    SEGMENT_REFERRED_TASK,
    SEGMENT_TASKS,
    SEMANTIC_TASK,
    Outcome,
    RoutedResult,
)
from services.evaluation.scenes_set import Prompt, SceneSet

# Classes whose ids are larger are grounds, which are no things to count.
_LAST_THING = 200


class Segmentation(BaseModel):
    """Masks of things and grounds."""

    # COCO's AP of masks at IoU 0.5, of things that answers in words ask for.
    instance_ap50: float | None
    # Mean IoU over classes, things and grounds, of /v1/segment with one mask a phrase.
    semantic_miou: float | None
    # Mean IoU of the mask of the one thing that was described.
    referring_miou: float | None
    # Mean IoU of the mask of what was marked with points, and with marks of each kind.
    interactive_miou: float | None
    interactive_by_kind: dict[str, float | None]


def segmentation_figures(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> Segmentation:
    """All figures of masks; None where nothing was asked."""
    semantic = MeanIou()
    for outcome in outcomes:
        if outcome.prompt.task == SEMANTIC_TASK:
            semantic.add(*_classes(scene_set, outcome))
    marked = [outcome for outcome in outcomes if outcome.prompt.task == INTERACTIVE_TASK]
    by_kind = {
        kind: mean(_one_iou(scene_set, outcome) for outcome in marked if outcome.prompt.kind == kind)
        for kind in sorted({outcome.prompt.kind for outcome in marked})
    }
    return Segmentation(
        instance_ap50=average_precision(
            [_masks(scene_set, outcome) for outcome in outcomes if outcome.prompt.task in SEGMENT_TASKS], "segm"
        ).ap50,
        semantic_miou=semantic.value(),
        referring_miou=mean(
            _one_iou(scene_set, outcome) for outcome in outcomes if outcome.prompt.task == SEGMENT_REFERRED_TASK
        ),
        interactive_miou=by_kind.get("points"),
        interactive_by_kind=by_kind,
    )


def _one_iou(scene_set: SceneSet, outcome: Outcome) -> float:
    """IoU of the best-scored mask with the one thing that is meant; 0 without a mask."""
    meant = scene_set.annotations[outcome.prompt.phrases[0].annotation_ids[0]].mask()
    candidates = [
        (score, mask)
        for result in outcome.routed
        for (_, score), mask in zip(result.found, result.masks, strict=True)
        if mask is not None
    ]
    if not candidates:
        return 0.0
    _, best = max(candidates, key=lambda candidate: candidate[0])
    return mask_iou(_decoded(best.model_dump()), meant)


def _classes(scene_set: SceneSet, outcome: Outcome) -> tuple[dict[int, Mask], dict[int, Mask]]:
    prompt = outcome.prompt
    found: dict[int, Mask] = {}
    truths: dict[int, Mask] = {}
    ids = _class_of(prompt)
    for phrase in prompt.phrases:
        masks = [scene_set.annotations[annotation].mask() for annotation in phrase.annotation_ids]
        truths[ids[phrase.phrase]] = np.any(masks, axis=0)
    for result in outcome.routed:
        masks = [_decoded(mask.model_dump()) for mask in result.masks if mask is not None]
        if masks and result.phrase in ids:
            found[ids[result.phrase]] = np.any(masks, axis=0)
    return truths, found


def _masks(scene_set: SceneSet, outcome: Outcome) -> PromptBoxes:
    """Truth and finds of one prompt, of things alone."""
    ids = {phrase: label for phrase, label in _class_of(outcome.prompt).items() if label <= _LAST_THING}
    truths = []
    for phrase in outcome.prompt.phrases:
        for annotation_id in phrase.annotation_ids if phrase.phrase in ids else ():
            annotation = scene_set.annotations[annotation_id]
            mask = annotation.segmentation.model_dump() if annotation.segmentation else None
            truths.append(TrueBox(ids[phrase.phrase], annotation.bbox, annotation.area, mask))
    found = [find for result in outcome.routed if result.phrase in ids for find in _finds(result, ids[result.phrase])]
    return PromptBoxes(tuple(truths), tuple(found))


def _finds(result: RoutedResult, category_id: int) -> list[FoundBox]:
    return [
        FoundBox(category_id, box, score, mask.model_dump())
        for (box, score), mask in zip(result.found, result.masks, strict=True)
        if mask is not None
    ]


def _class_of(prompt: Prompt) -> dict[str, int]:
    return {phrase.phrase: phrase.category_id for phrase in prompt.phrases if phrase.category_id is not None}


def _decoded(mask: dict[str, object]) -> Mask:
    return np.asarray(coco_mask.decode(mask), dtype=np.bool_)
