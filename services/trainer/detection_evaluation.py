"""How well a detector does on scenes, in-process: average precision (COCO definition) and presence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from services.detection.model import Detector
from services.grounding.structures import GroundingOptions
from services.trainer.coco_figures import coco_average_precision, corner_to_size
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
        truths.extend(
            {
                "image_id": number,
                "category_id": CATEGORY_INDEX[thing.category.key],
                "bbox": corner_to_size(thing.box),
                "area": thing.area,
            }
            for thing in scene.objects
        )
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
            [GroundingOptions(score_threshold=0.01)] * len(part),
        )
        for row, result in enumerate(results):
            categories = asked[start + row]
            for box, score, group in zip(result.boxes, result.scores, result.groups, strict=True):
                found.append(
                    {
                        "image_id": start + row,
                        "category_id": categories[int(group)],
                        "bbox": corner_to_size(box),
                        "score": float(score),
                    }
                )
            present_count = len(categories) - _ABSENT
            presence.extend(
                bool(is_found) == (index < present_count) for index, is_found in enumerate(result.presence_found)
            )
    detector.train(training)
    average_precision, average_precision_50 = coco_average_precision(
        [(scene.height, scene.width) for scene in scenes], truths, found, "bbox"
    )
    return {"ap": average_precision, "ap50": average_precision_50, "presence": float(np.mean(presence))}
