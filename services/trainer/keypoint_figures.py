"""Average precision of poses: COCO's definition over object keypoint similarity, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The only category: one skeleton is judged at a time.
FIGURE = 1


def oks_average_precision(
    sizes: Sequence[tuple[int, int]],
    annotations: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
) -> tuple[float, float]:
    """AP over OKS 0.5 to 0.95, and AP at 0.5, of figures with one skeleton.

    ``sizes`` are the images' heights and widths. ``annotations`` are COCO's ``image_id``, ``bbox``, ``area`` and
    ``keypoints`` (x, y, visibility for each); ``results`` are ``image_id``, ``score`` and ``keypoints``. ``sigmas``
    are the skeleton's, in the order of the keypoints.
    """
    if not annotations or not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [
                {"id": number, "height": height, "width": width} for number, (height, width) in enumerate(sizes)
            ],
            "categories": [{"id": FIGURE}],
            "annotations": [
                {
                    "id": number,
                    "iscrowd": 0,
                    "category_id": FIGURE,
                    "num_keypoints": sum(flag > 0 for flag in annotation["keypoints"][2::3]),
                    **annotation,
                }
                for number, annotation in enumerate(annotations, start=1)
            ],
        }
        reference.createIndex()
        found = reference.loadRes([{"category_id": FIGURE, **result} for result in results])
        evaluation = COCOeval(reference, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 where no figure has a labelled keypoint.
    return max(0.0, float(evaluation.stats[0])), max(0.0, float(evaluation.stats[1]))
