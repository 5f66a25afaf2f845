"""How well a detector does on scenes, in-process: average precision (COCO definition) and presence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from services.detection.model import Detector
from services.detection.structures import DetectorOptions
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.scene import Scene

_ABSENT = 2
_BATCH = 16


@torch.no_grad()
def evaluate_detector(
    detector: Detector, links_of: Callable[[Scene, list[int]], Tensor], scenes: Sequence[Scene]
) -> dict[str, float]:
    """Ask for all present and two absent categories of every scene.

    ``links_of`` gives the link embeddings ``[groups, link_width]`` of category indices asked about a scene. Returns ap,
    ap50 and presence, the share of categories that are rightly called present or absent.
    """
    training = detector.training
    detector.eval()
    asked, truths, found, presence = [], [], [], []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng((scene.seed, 2))
        present = sorted({CATEGORY_INDEX[thing.category.key] for thing in scene.objects})
        absent = [int(index) for index in rng.permutation(len(CATEGORIES)) if index not in present][:_ABSENT]
        asked.append(present + absent)
        truths.extend((number, CATEGORY_INDEX[thing.category.key], thing.box, thing.area) for thing in scene.objects)
    for start in range(0, len(scenes), _BATCH):
        part = scenes[start : start + _BATCH]
        prepared = [detector.prepare(scene.image) for scene in part]
        longest = max(len(categories) for categories in asked[start : start + _BATCH])
        device = detector.logit_bias.device
        links = torch.zeros(len(part), longest, detector.config.link_width, device=device)
        mask = torch.zeros(len(part), longest, dtype=torch.bool, device=device)
        for row, categories in enumerate(asked[start : start + _BATCH]):
            links[row, : len(categories)] = links_of(part[row], categories)
            mask[row, : len(categories)] = True
        outputs = detector(detector.encode(torch.stack([image.pixels for image in prepared]).to(device)), links, mask)
        results = detector.decode(
            outputs,
            [image.original_size for image in prepared],
            [len(categories) for categories in asked[start : start + _BATCH]],
            [DetectorOptions(score_threshold=0.01)] * len(part),
        )
        for row, result in enumerate(results):
            categories = asked[start + row]
            for box, score, group in zip(result.boxes, result.scores, result.groups, strict=True):
                found.append((start + row, categories[int(group)], box, float(score)))
            present_count = len(categories) - _ABSENT
            presence.extend(
                bool(is_found) == (index < present_count) for index, is_found in enumerate(result.presence_found)
            )
    detector.train(training)
    average_precision, average_precision_50 = coco_average_precision(len(scenes), truths, found)
    return {"ap": average_precision, "ap50": average_precision_50, "presence": float(np.mean(presence))}


def coco_average_precision(
    images: int,
    truths: Sequence[tuple[int, int, Sequence[float], float]],
    found: Sequence[tuple[int, int, Sequence[float], float]],
) -> tuple[float, float]:
    """AP over IoU 0.5 to 0.95, and AP at 0.5, by pycocotools.

    ``truths`` holds (image, category, corner box, area), ``found`` (image, category, corner box, score).
    """
    if not found:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": number} for number in range(images)],
            "categories": [{"id": number} for number in range(len(CATEGORIES))],
            "annotations": [
                {
                    "id": number + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": _corner_to_size(box),
                    "area": area,
                    "iscrowd": 0,
                }
                for number, (image, category, box, area) in enumerate(truths)
            ],
        }
        reference.createIndex()
        results = reference.loadRes(
            [
                {"image_id": image, "category_id": category, "bbox": _corner_to_size(box), "score": score}
                for image, category, box, score in found
            ]
        )
        evaluation = COCOeval(reference, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _corner_to_size(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
