"""How well a pose estimator does on scenes, in-process: average precision over object keypoint similarity, by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.grounding.structures import GroundingOptions
from services.pose.model import PoseEstimator
from services.trainer.coco_figures import corner_to_size
from services.trainer.keypoint_figures import oks_average_precision
from services.trainer.scenes.pose_names import figure_row, keypoint_rows
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS

# Figures are asked for with little confidence and ranked, as average precision wants it.
_LEAST_SCORE = 0.01


@torch.no_grad()
def evaluate_pose(
    estimator: PoseEstimator, links_of: Callable[[Scene, list[int]], Tensor], scenes: Sequence[Scene]
) -> dict[str, float]:
    """Ask every scene for each kind of figure, there or not, with all its keypoints.

    ``links_of`` gives the link embeddings ``[groups, link_width]`` of rows of ``POSE_NAMES`` asked about a scene.
    Returns oks_ap and oks_ap50 of every kind, "oks_ap50_person", and their means over kinds, "oks_ap50".
    """
    training = estimator.training
    estimator.eval()
    annotations: dict[str, list[dict[str, object]]] = {skeleton.key: [] for skeleton in SKELETONS}
    results: dict[str, list[dict[str, object]]] = {skeleton.key: [] for skeleton in SKELETONS}
    for number, scene in enumerate(scenes):
        prepared = estimator.prepare(scene.image)
        features = estimator.encode(prepared.pixels[None].to(estimator.logit_bias.device))
        for skeleton in SKELETONS:
            links = links_of(scene, [figure_row(skeleton.key), *keypoint_rows(skeleton)])[None]
            mask = torch.ones(links.shape[:2], dtype=torch.bool, device=links.device)
            outputs = estimator(features, links, mask, torch.arange(mask.shape[1])[None].to(mask.device) > 0)
            option = GroundingOptions(score_threshold=_LEAST_SCORE)
            [result] = estimator.decode(outputs, [prepared.original_size], [mask.shape[1]], [option])
            results[skeleton.key].extend(
                {"image_id": number, "score": float(score), "keypoints": keypoints.flatten().tolist()}
                for keypoints, score in zip(result.keypoints, result.scores, strict=True)
            )
        for thing in scene.objects:
            if thing.keypoints is not None and thing.visibility is not None:
                flagged = zip(thing.keypoints.tolist(), thing.visibility.tolist(), strict=True)
                annotations[thing.category.key].append(
                    {
                        "image_id": number,
                        "bbox": corner_to_size(thing.box),
                        "area": thing.area,
                        "keypoints": [value for (x, y), flag in flagged for value in (x, y, flag)],
                    }
                )
    estimator.train(training)
    sizes = [(scene.height, scene.width) for scene in scenes]
    figures: dict[str, float] = {}
    for skeleton in SKELETONS:
        sigmas = [keypoint.sigma for keypoint in skeleton.keypoints]
        figures[f"oks_ap_{skeleton.key}"], figures[f"oks_ap50_{skeleton.key}"] = oks_average_precision(
            sizes, annotations[skeleton.key], results[skeleton.key], sigmas
        )
    for name in ("oks_ap", "oks_ap50"):
        figures[name] = sum(figures[f"{name}_{skeleton.key}"] for skeleton in SKELETONS) / len(SKELETONS)
    return figures
