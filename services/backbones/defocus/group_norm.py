"""Root mean square norm over groups of channels, without parameters (RetNet; the released De-focus Mamba)."""

from __future__ import annotations

from torch import Tensor

_EPSILON = 1e-6


def group_rms_norm(features: Tensor, group: int) -> Tensor:
    """``[..., channels]``, every ``group`` neighbouring channels divided by their root mean square, in float32."""
    precise = features.float() if features.dtype.itemsize < 4 else features
    grouped = precise.reshape(*features.shape[:-1], features.shape[-1] // group, group)
    normed = grouped * (grouped.square().mean(dim=-1, keepdim=True) + _EPSILON).rsqrt()
    return normed.flatten(-2).to(features.dtype)
