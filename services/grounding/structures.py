"""What goes into and comes out of a grounding network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class GroundingOptions:
    """What a request may ask of a decoder that finds things."""

    # Probability below which finds are dropped; None: the model's calibrated default.
    score_threshold: float | None = None
    # How many finds are reported, the likeliest first.
    most_finds: int = 100
    # One mask a phrase, every pixel in one at most, instead of one mask a thing; for decoders that segment.
    semantic: bool = False


@dataclass(frozen=True)
class EncodedMask:
    """COCO run-length encoding, column-major, of a mask the size of the upright original."""

    height: int
    width: int
    counts: bytes


@dataclass(frozen=True)
class GroundingResult:
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
    # One for each find, of decoders that segment.
    masks: tuple[EncodedMask, ...] | None = None
    # [found, keypoints, 3] float32: x and y in pixels of the upright original, confidence; of decoders that find poses.
    keypoints: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class GroundingOutputs:
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
    # [layers, batch, queries, width]: the candidates' states.
    states: Tensor
    # [batch, tokens, width]: the image tokens of all levels after the encoder, finest level first.
    memory: Tensor
    # Denoising queries come first among the queries in training; 0 otherwise.
    denoising_count: int = 0


@dataclass(frozen=True)
class GroundingTargets:
    """Ground truth of a batch, padded to the image with the most objects, and to one at least."""

    # [batch, objects, 4] centre x, centre y, width, height relative to the padded square.
    boxes: Tensor
    # [batch, objects, groups] bool: which groups mean this object; an object may belong to several.
    groups: Tensor
    # [batch, objects] bool: which objects are real.
    mask: Tensor
    # Objects over all ranks divided by the number of ranks, at least 1: what the losses are divided by.
    normaliser: float


@dataclass(frozen=True)
class Selection:
    """What is reported of one image: ``found`` candidates, likeliest first, and a verdict on every phrase."""

    # [found] int64 index of the candidate.
    queries: Tensor
    # [found, 4] x1, y1, x2, y2 relative to the padded square.
    corners: Tensor
    # [found] calibrated probabilities.
    scores: Tensor
    # [found] int64 index of the phrase.
    groups: Tensor
    # [groups] calibrated probability that what the phrase means is there at all, and [groups] bool.
    presence_scores: Tensor
    presence_found: Tensor
