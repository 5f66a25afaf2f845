"""Average precision on prompted categories, by pycocotools.

Every prompt counts as an image of its own in which only its phrases' categories are annotated and detected: a prompted
category that is not in the image can only yield false positives, and one that was not asked for counts neither way.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BoundingBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class TrueBox:
    """One thing that a prompt asks for."""

    category_id: int
    # x, y, width, height in pixels.
    bbox: BoundingBox
    # Pixels.
    area: float
    # COCO's run lengths, where masks are compared.
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FoundBox:
    """One detection of a category that the prompt asks for."""

    category_id: int
    # x, y, width, height in pixels.
    bbox: BoundingBox
    score: float
    # COCO's run lengths, where masks are compared.
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PromptBoxes:
    """Truth and detections of one prompt."""

    truths: tuple[TrueBox, ...]
    found: tuple[FoundBox, ...]


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's AP over IoU 0.50 to 0.95 and at 0.50, each 0..1; None where nothing was to be found."""

    ap: float | None
    ap50: float | None


def average_precision(prompts: Iterable[PromptBoxes], compared: Literal["bbox", "segm"] = "bbox") -> AveragePrecision:
    """Mean over all categories that are the truth of some prompt; boxes or masks are ``compared``."""
    judged = list(prompts)
    annotations = [
        {
            "id": 0,
            "image_id": number,
            "category_id": truth.category_id,
            "bbox": list(truth.bbox),
            "area": truth.area,
            "iscrowd": 0,
            "segmentation": truth.mask,
        }
        for number, prompt in enumerate(judged)
        for truth in prompt.truths
    ]
    if not annotations:
        return AveragePrecision(None, None)
    for place, annotation in enumerate(annotations):
        # pycocotools takes the id 0 for "unmatched".
        annotation["id"] = place + 1
    results = [
        {
            "image_id": number,
            "category_id": found.category_id,
            "score": found.score,
            # pycocotools compares what the first result has.
            **({"bbox": list(found.bbox)} if compared == "bbox" else {"segmentation": found.mask}),
        }
        for number, prompt in enumerate(judged)
        for found in prompt.found
    ]
    if not results:
        return AveragePrecision(0.0, 0.0)
    stats = _coco_stats(
        [_image(number, prompt) for number, prompt in enumerate(judged)], annotations, results, compared
    )
    return AveragePrecision(float(stats[0]), float(stats[1]))


def intersection_over_union(first: BoundingBox, second: BoundingBox) -> float:
    """IoU of two boxes given as x, y, width, height."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = first[2] * first[3] + second[2] * second[3] - overlap
    return overlap / union if union > 0 else 0.0


def _image(number: int, prompt: PromptBoxes) -> dict[str, object]:
    """An image as COCO lists it, with the size that masks have."""
    sizes = [entry.mask["size"] for entry in (*prompt.truths, *prompt.found) if entry.mask is not None]
    return {"id": number} | (dict(zip(("height", "width"), sizes[0], strict=True)) if sizes else {})


def _coco_stats(
    images: Sequence[dict[str, object]],
    annotations: Sequence[dict[str, object]],
    results: Sequence[dict[str, object]],
    compared: Literal["bbox", "segm"],
) -> NDArray[np.float64]:
    categories = sorted({int(str(entry["category_id"])) for entry in (*annotations, *results)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": list(images),
            "categories": [{"id": category} for category in categories],
            "annotations": list(annotations),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(results)), compared)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)
