"""Where an edit belongs: a small head over the source's features, asked in the links of the edit.

DiffEdit (Couairon et al. 2023) finds the place from what the denoising network would change; here it is learnt from
edits whose place is known, and is there before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from services.diffusion.configuration import FinderConfig


@dataclass(frozen=True)
class Places:
    """Logits of where an edit belongs."""

    # [batch, h, w]: where what the links name is.
    named: Tensor
    # [batch, h, w]: where any thing is.
    things: Tensor
    # [batch]: whether the edit puts something new into the image.
    new: Tensor
    # [batch]: whether it does so where nothing is named, and needs a free place.
    added: Tensor


class Finder(nn.Module):
    """Dot products of what the links ask for with what each place shows."""

    def __init__(self, config: FinderConfig, channels: int, link_width: int, links: int) -> None:
        super().__init__()
        width = config.width
        self.places = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width + 1, 1),
        )
        # A query, its bias, and the two verdicts on the request.
        self.request = nn.Sequential(
            nn.Linear(links * link_width, 2 * width), nn.GELU(), nn.Linear(2 * width, width + 3)
        )

    def forward(self, features: Tensor, links: Tensor) -> Places:
        """``features`` ``[batch, channels, h, w]`` of sources, ``links`` ``[batch, links, link_width]``."""
        shown, asked = self.places(features), self.request(links.flatten(1))
        query, bias, new, added = asked[:, :-3], *asked[:, -3:].unbind(dim=1)
        named = (shown[:, :-1] * query[:, :, None, None]).sum(dim=1) / query.shape[1] ** 0.5
        return Places(named=named + bias[:, None, None], things=shown[:, -1], new=new, added=added)
