"""Both halves of latent compression: contrast (context to image) and generation (image to text).

Means are taken over all images and all tokens of all ranks, so that several processes train exactly what one would on
all their documents. (The released code averages on each rank first, which gives an image on a rank with few images
more weight.) A loss without anything to compare is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from services.trainer import distributed

# Tokens whose logits exist at a time: with 49 411 words and more tokens than these, logits would take gigabytes.
_TOKENS_AT_ONCE = 4096
# In place of a denominator of 0; the numerator is 0 then.
_TINY = 1e-12


def contrast_loss(images: Tensor, contexts: Tensor, scale: Tensor, capacity: int) -> Tensor:
    """Cross-entropy of every image among all contexts, and of every context among all images.

    ``images`` and ``contexts`` are ``[pairs, width]`` of unit length, ``scale`` multiplies their products. Candidates
    are those of all ranks, which may hold different numbers of pairs, none included, and at most ``capacity``. A lower
    bound of the mutual information is the logarithm of their number less this loss.
    """
    gathered = distributed.gather_rows(torch.cat((images, contexts), dim=1), capacity)
    all_images, all_contexts = gathered.rows.chunk(2, dim=1)
    labels = torch.arange(len(images), device=images.device) + gathered.first
    # Half precision cannot tell near candidates apart.
    with torch.autocast(images.device.type, enabled=False):
        logits = [scale * images @ all_contexts.T, scale * contexts @ all_images.T]  # (pairs, candidates) each
    total = sum(
        nn.functional.cross_entropy(each.masked_fill(~gathered.is_real, -torch.inf), labels, reduction="sum")
        for each in logits
    )
    # Gradients are averaged over ranks, so the denominator is a rank's share of the pairs.
    pairs = gathered.is_real.sum() / gathered.ranks
    return torch.as_tensor(total) / 2 / pairs.clamp(min=_TINY)


def generation_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of ``targets`` ``[tokens]`` under ``head`` of ``states`` ``[tokens, width]``.

    Logits exist for some tokens at a time, and are made again for the gradients.
    """
    if len(states) <= _TOKENS_AT_ONCE:
        total = _summed(head, states, targets)
    else:
        parts = zip(*(torch.split(each, _TOKENS_AT_ONCE) for each in (states, targets)), strict=True)
        total = torch.stack([checkpoint(_summed, head, *part, use_reentrant=False) for part in parts]).sum()
    count = torch.tensor(float(len(targets)), device=states.device)
    return total / distributed.mean_count(count).clamp(min=_TINY)


def _summed(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(states).float(), targets, reduction="sum")
