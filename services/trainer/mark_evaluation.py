"""How well a segmenter masks what is marked: mean IoU by kind of mark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.grounding.structures import GroundingOptions
from services.runtime.regions import pad_regions, region_mask, region_points
from services.segmentation.model import Segmenter
from services.segmentation.run_length import decode_mask
from services.trainer.scenes.marks import MARK_KINDS, draw_mark, markable
from services.trainer.scenes.scene import Scene


@torch.no_grad()
def evaluate_marks(segmenter: Segmenter, link: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mark one random thing a scene in every way. Returns interactive_miou and interactive_miou_KIND for every kind.

    ``link`` ``[link_width]`` is the link embedding of a region. Every kind is a request of its own.
    """
    training = segmenter.training
    segmenter.eval()
    overlaps: dict[str, list[float]] = {kind: [] for kind in MARK_KINDS}
    for scene in scenes:
        things = markable(scene)
        if not things:
            continue
        rng = np.random.default_rng(scene.seed)
        thing = scene.objects[things[int(rng.integers(len(things)))]]
        prepared = segmenter.prepare(scene.image)
        size, kinds = prepared.original_size, len(MARK_KINDS)
        marks = [region_points(region_mask(draw_mark(thing, kind, rng), *size)) for kind in MARK_KINDS]
        regions = pad_regions([[(0, mark.scaled(max(size)))] for mark in marks]).to(link.device)
        features = segmenter.encode(prepared.pixels[None].to(link.device))
        outputs = segmenter(
            tuple(level.expand(kinds, -1, -1, -1) for level in features),
            link.expand(kinds, 1, -1),
            torch.ones(kinds, 1, dtype=torch.bool, device=link.device),
            regions=regions,
        )
        results = segmenter.decode(outputs, [size] * kinds, [1] * kinds, [GroundingOptions()] * kinds)
        for kind, result in zip(MARK_KINDS, results, strict=True):
            found = decode_mask(result.masks[0]) if result.masks else np.zeros_like(thing.mask)
            overlaps[kind].append(float((found & thing.mask).sum() / (found | thing.mask).sum()))
    segmenter.train(training)
    by_kind = {kind: float(np.mean(values)) if values else 0.0 for kind, values in overlaps.items()}
    return {
        "interactive_miou": float(np.mean(list(by_kind.values()))),
        **{f"interactive_miou_{kind}": value for kind, value in by_kind.items()},
    }
