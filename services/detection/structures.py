"""What goes into and comes out of the detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class DetectorOptions:
    """What a request may ask of the detector."""

    # Probability below which detections are dropped; None: the model's calibrated default.
    score_threshold: float | None = None
    max_detections: int = 100


@dataclass(frozen=True)
class DetectionResult:
    """What was found in one image."""

    # [found, 4] float32: x1, y1, x2, y2 in pixels of the upright original.
    boxes: NDArray[np.float32]
    # [found] float32 calibrated probabilities, highest first.
    scores: NDArray[np.float32]
    # [found] int64 index of the group that asked for it.
    groups: NDArray[np.int64]
    # [groups] float32 calibrated probability that what the group asked for is there at all.
    presence_scores: NDArray[np.float32]
    # [groups] bool.
    presence_found: NDArray[np.bool_]


@dataclass(frozen=True)
class DetectionOutputs:
    """Raw outputs of a forward pass over ``batch`` images, ``queries`` candidates and ``groups`` phrases."""

    # [layers, batch, queries, groups] logits; masked groups hold a large negative number.
    logits: Tensor
    # [layers, batch, queries, 4] centre x, centre y, width, height relative to the padded square.
    boxes: Tensor
    # [batch, queries, groups] and [batch, queries, 4] of the encoder's proposals.
    proposal_logits: Tensor
    proposal_boxes: Tensor
    # [batch, groups] bool.
    link_mask: Tensor
    # Denoising queries come first among the queries in training; 0 otherwise.
    denoising_count: int = 0


@dataclass(frozen=True)
class DetectionTargets:
    """Ground truth of a batch, padded to the image with the most objects, and to one at least."""

    # [batch, objects, 4] centre x, centre y, width, height relative to the padded square.
    boxes: Tensor
    # [batch, objects, groups] bool: which groups mean this object; an object may belong to several.
    groups: Tensor
    # [batch, objects] bool: which objects are real.
    mask: Tensor
    # Objects over all ranks divided by the number of ranks, at least 1: what the losses are divided by.
    normaliser: float
