"""How the losses of many tokens become one: every token alike, every sample alike, or in between.

With x supervised tokens in a token's sample its weight is 1 (``token``), 1/x (``sample``) or 1/sqrt(x) (``square``);
InternVL trains with ``square``, so that neither long answers nor one-word answers take over.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed

Reduction = Literal["token", "sample", "square"]

_EXPONENT: dict[Reduction, float] = {"token": 0.0, "sample": -1.0, "square": -0.5}


def token_weights(samples: Tensor, reduction: Reduction) -> Tensor:
    """The weight of every supervised token; ``samples`` ``[tokens]`` holds the number of each one's sample."""
    supervised = torch.bincount(samples)[samples]
    return supervised.float() ** _EXPONENT[reduction]


def reduce_losses(losses: Tensor, samples: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """Weighted sum of ``losses`` ``[tokens]``, and the sum of the weights.

    Their quotient is the loss. They come apart so that the sums of several packs or ranks can be added up first.
    """
    weights = token_weights(samples, reduction).to(losses.dtype)
    return (losses * weights).sum(), weights.sum()


def mean_loss(losses: Tensor, samples: Tensor, reduction: Reduction) -> Tensor:
    """The weighted mean of ``losses`` ``[tokens]``, to be differentiated on this rank.

    Under torchrun the denominator is the mean over ranks: averaged gradients are then those of the mean over all ranks'
    tokens. Without a supervised token it is zero, and still has gradients, so that all ranks take part in the step.
    """
    total, weight = reduce_losses(losses, samples, reduction)
    if distributed.is_initialized():
        weight = weight.detach().clone()
        distributed.all_reduce(weight)
        weight = weight / distributed.get_world_size()
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
