"""Average precision by COCO's definition, of boxes or of masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from services.trainer.scenes.categories import CATEGORIES


def coco_average_precision(
    sizes: Sequence[tuple[int, int]],
    annotations: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    compared: Literal["bbox", "segm"],
) -> tuple[float, float]:
    """AP over IoU 0.5 to 0.95, and AP at 0.5, of scenes whose categories are indices into ``CATEGORIES``.

    ``sizes`` are the images' heights and widths. ``annotations`` are COCO's, without id and iscrowd; ``results`` are
    COCO's, with ``bbox`` or ``segmentation``.
    """
    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [
                {"id": number, "height": height, "width": width} for number, (height, width) in enumerate(sizes)
            ],
            "categories": [{"id": number} for number in range(len(CATEGORIES))],
            "annotations": [
                {"id": number, "iscrowd": 0, **annotation} for number, annotation in enumerate(annotations, start=1)
            ],
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes([dict(result) for result in results]), compared)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def corner_to_size(box: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 to COCO's x, y, width, height."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
