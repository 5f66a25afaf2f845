"""How well a segmenter does on scenes, in-process: average precision of instance masks, and semantic mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from services.grounding.structures import EncodedMask, GroundingOptions, GroundingResult
from services.segmentation.model import Segmenter
from services.segmentation.run_length import decode_mask, encode_mask
from services.trainer.coco_figures import coco_average_precision, corner_to_size
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.grounds import with_grounds
from services.trainer.scenes.scene import Scene
from services.trainer.segment_names import SEGMENT_NAMES

# Masks are asked for with little confidence and ranked, as average precision wants it.
_LEAST_SCORE = 0.01
_ROWS = {name: row for row, name in enumerate(SEGMENT_NAMES)}


@torch.no_grad()
def evaluate_segmenter(
    segmenter: Segmenter, links_of: Callable[[Scene, list[int]], Tensor], scenes: Sequence[Scene]
) -> dict[str, float]:
    """Ask every scene for its categories and named grounds. Returns mask_ap, mask_ap50, semantic_miou and ground_miou.

    Average precision and ``semantic_miou`` are of things alone. ``links_of`` gives the link embeddings
    ``[groups, link_width]`` of rows of the vocabulary asked about a scene.
    """
    training = segmenter.training
    segmenter.eval()
    annotations, results = [], []
    overlaps: dict[int, list[tuple[int, int]]] = {}
    for number, scene in enumerate(scenes):
        everything = with_grounds(scene).objects
        present = sorted({_ROWS[thing.category.key] for thing in everything})
        if not present:
            continue
        links = links_of(scene, present)[None]
        prepared = segmenter.prepare(scene.image)
        features = segmenter.encode(prepared.pixels[None].to(links.device))
        outputs = segmenter(features, links, torch.ones(links.shape[:2], dtype=torch.bool, device=links.device))

        def decoded(options: GroundingOptions) -> GroundingResult:
            [result] = segmenter.decode(outputs, [prepared.original_size], [len(present)], [options])  # noqa: B023
            return result

        instances = decoded(GroundingOptions(score_threshold=_LEAST_SCORE))
        semantic = decoded(GroundingOptions(semantic=True))
        annotations.extend(
            {
                "image_id": number,
                "category_id": _ROWS[thing.category.key],
                "bbox": corner_to_size(thing.box),
                "area": thing.area,
                "segmentation": _coco(encode_mask(thing.mask)),
            }
            for thing in scene.objects
        )
        results.extend(
            {
                "image_id": number,
                "category_id": present[int(group)],
                "segmentation": _coco(mask),
                "score": float(score),
            }
            for mask, score, group in zip(instances.masks, instances.scores, instances.groups, strict=True)
            if present[int(group)] < len(CATEGORIES)
        )
        found = {
            present[int(group)]: decode_mask(mask) for mask, group in zip(semantic.masks, semantic.groups, strict=True)
        }
        for row in present:
            truth = np.any([thing.mask for thing in everything if _ROWS[thing.category.key] == row], axis=0)
            mask = found.get(row, np.zeros_like(truth))
            overlaps.setdefault(row, []).append((int((mask & truth).sum()), int((mask | truth).sum())))
    segmenter.train(training)
    average_precision, average_precision_50 = coco_average_precision(
        [(scene.height, scene.width) for scene in scenes], annotations, results, "segm"
    )
    return {
        "mask_ap": average_precision,
        "mask_ap50": average_precision_50,
        "semantic_miou": _mean([pairs for row, pairs in overlaps.items() if row < len(CATEGORIES)]),
        "ground_miou": _mean([pairs for row, pairs in overlaps.items() if row >= len(CATEGORIES)]),
    }


def _mean(overlaps: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Mean over classes of the pixels that truth and answers share, as part of those of either."""
    shares = [sum(shared for shared, _ in pairs) / sum(both for _, both in pairs) for pairs in overlaps]
    return float(np.mean(shares)) if shares else 0.0


def _coco(mask: EncodedMask) -> dict[str, object]:
    return {"size": [mask.height, mask.width], "counts": mask.counts}
