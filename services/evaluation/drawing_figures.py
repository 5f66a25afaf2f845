"""Figures of images that tools made, as the detector sees them; docs/evaluation.md defines each."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from services.evaluation.average_precision import BoundingBox, intersection_over_union
from services.evaluation.mean_iou import mean
from services.evaluation.outcomes import DRAW_TASK, EDIT_TASK, Outcome
from services.evaluation.scenes_set import ExpectedEdit, SceneSet, SetAnnotation

# How far a mean hue may lie from the one that was asked for, of 0..1 around the circle.
_HUE_TOLERANCE = 0.08
# How far a mean colour may lie from that of a named ground, in 0..255 over the three channels.
_COLOUR_TOLERANCE = 70.0
# A thing that keeps its place overlaps it by this IoU.
_PLACE_IOU = 0.3
# Equal images have no noise; this stands for them.
_MOST_PSNR = 60.0


class Generation(BaseModel):
    """Whether the detector finds in new images what was asked for."""

    # Share of the asked categories that it finds.
    detector_agreement: float | None
    # The same for the categories that another prompt asks for.
    baseline: float | None


class Editing(BaseModel):
    """Whether edits do what was asked, and leave the rest alone."""

    change_verified: float | None
    by_kind: dict[str, float | None]
    # Mean peak signal-to-noise ratio in dB of the pixels that should not change.
    untouched_psnr: float | None


def baselines(asked_lists: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each list of categories the next one, going around, that shares none with it."""
    lists = list(asked_lists)
    found = []
    for place, asked in enumerate(lists):
        following = [*lists[place + 1 :], *lists[:place]]
        found.append(next((other for other in following if not set(other) & set(asked)), ()))
    return found


def generation_figures(outcomes: Sequence[Outcome]) -> Generation:
    """An image that was not made shows nothing."""
    drawn = [outcome for outcome in outcomes if outcome.prompt.task == DRAW_TASK]
    asked = [outcome.prompt.drawing.category_ids if outcome.prompt.drawing else () for outcome in drawn]
    pairs = [(outcome.shown or {}, ids) for outcome, ids in zip(drawn, asked, strict=True)]
    others = [(outcome.shown or {}, ids) for outcome, ids in zip(drawn, baselines(asked), strict=True)]
    return Generation(detector_agreement=_agreement(pairs), baseline=_agreement(others))


def _agreement(pairs: Sequence[tuple[Mapping[int, tuple[BoundingBox, ...]], tuple[int, ...]]]) -> float | None:
    return mean(float(bool(shown.get(category))) for shown, asked in pairs for category in asked)


def editing_figures(scene_set: SceneSet, outcomes: Sequence[Outcome]) -> Editing:
    """An edit without an image is not verified, and has no untouched pixels to compare."""
    edits = [outcome for outcome in outcomes if outcome.prompt.task == EDIT_TASK]
    verified = {outcome.prompt.id: float(is_verified(scene_set, outcome)) for outcome in edits}
    noise = [_untouched_psnr(scene_set, outcome) for outcome in edits]
    return Editing(
        change_verified=mean(verified.values()),
        by_kind={
            kind: mean(verified[outcome.prompt.id] for outcome in edits if outcome.prompt.kind == kind)
            for kind in sorted({outcome.prompt.kind for outcome in edits})
        },
        untouched_psnr=mean(value for value in noise if value is not None),
    )


def is_verified(scene_set: SceneSet, outcome: Outcome) -> bool:
    """Whether the edited image shows what the edit should have brought about."""
    expected, image = outcome.prompt.edit, made_image(scene_set, outcome)
    if expected is None or image is None:
        return False
    annotations = [
        scene_set.annotations[annotation] for phrase in outcome.prompt.phrases for annotation in phrase.annotation_ids
    ]
    # Edits of the ground need no detector.
    shown = outcome.shown or {}
    if expected.gone is not None and len(shown.get(expected.gone, ())) >= len(annotations):
        return False
    if expected.new is not None and not shown.get(expected.new):
        return False
    if expected.recoloured is not None and not _in_place(shown.get(expected.recoloured, ()), annotations):
        return False
    return _has_colour(image[expected.changed_mask()], expected)


def made_image(scene_set: SceneSet, outcome: Outcome) -> NDArray[np.uint8] | None:
    """The first image that was made, ``[height, width, 3]`` RGB at the source's size, if there is one."""
    made = [image for result in outcome.routed for image in result.images]
    if not made or outcome.prompt.image_id is None:
        return None
    source = scene_set.images[outcome.prompt.image_id]
    with Image.open(io.BytesIO(made[0])) as opened:
        return np.asarray(opened.convert("RGB").resize((source.width, source.height)))


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two images of the same shape, at most 60."""
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return min(_MOST_PSNR, 10 * float(np.log10(255**2 / error))) if error else _MOST_PSNR


def mean_hue(pixels: NDArray[np.uint8]) -> float:
    """The mean hue 0..1 of ``[pixels, 3]`` RGB around the circle; strong and bright colours weigh more."""
    shades = np.asarray(Image.fromarray(pixels[None]).convert("HSV"), dtype=np.float64)[0] / 255
    directions = np.exp(2j * np.pi * shades[:, 0]) * shades[:, 1] * shades[:, 2]
    return float(np.angle(directions.sum()) / (2 * np.pi) % 1.0)


def _untouched_psnr(scene_set: SceneSet, outcome: Outcome) -> float | None:
    expected, image = outcome.prompt.edit, made_image(scene_set, outcome)
    if expected is None or image is None or outcome.prompt.image_id is None:
        return None
    untouched = ~expected.changed_mask()
    if not untouched.any():
        return None
    with Image.open(scene_set.image_file(outcome.prompt.image_id)) as opened:
        source = np.asarray(opened.convert("RGB"))
    return psnr(image[untouched], source[untouched])


def _in_place(boxes: Sequence[BoundingBox], annotations: Sequence[SetAnnotation]) -> bool:
    return all(
        any(intersection_over_union(box, annotation.bbox) >= _PLACE_IOU for box in boxes) for annotation in annotations
    )


def _has_colour(changed: NDArray[np.uint8], expected: ExpectedEdit) -> bool:
    if expected.hue is not None:
        distance = abs(mean_hue(changed) - expected.hue)
        return min(distance, 1 - distance) <= _HUE_TOLERANCE
    if expected.colour is not None:
        return float(np.linalg.norm(changed.mean(axis=0) - np.array(expected.colour))) <= _COLOUR_TOLERANCE
    return True
