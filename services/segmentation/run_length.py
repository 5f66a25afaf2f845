"""Masks in COCO's run-length encoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_length

from services.grounding.structures import EncodedMask


def encode_mask(mask: NDArray[np.bool_]) -> EncodedMask:
    """``[height, width]`` bool as run lengths."""
    code = run_length.encode(np.asfortranarray(mask, dtype=np.uint8))
    return EncodedMask(height=mask.shape[0], width=mask.shape[1], counts=code["counts"])


def decode_mask(mask: EncodedMask) -> NDArray[np.bool_]:
    """``[height, width]`` bool."""
    decoded: NDArray[np.uint8] = run_length.decode({"size": [mask.height, mask.width], "counts": mask.counts})
    return decoded.astype(bool)
