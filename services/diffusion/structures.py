"""What a request to the diffusion tool may set, and what an edit starts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiffusionOptions:
    """How an image is made; shared by all images of one call of ``Diffuser.sample``."""

    # Calls of the denoising network one after the other.
    steps: int
    # How far to follow the request; 1 is not to exaggerate it.
    guidance: float
    # How far to keep to the source of an edit; 1 is not to exaggerate it.
    image_guidance: float
    # Of what is drawn, in pixels, multiples of 16. An edit has its source's.
    width: int
    height: int


@dataclass(frozen=True)
class Request:
    """What is asked of each image, as the denoising network gets it."""

    # [batch, queries, width]: what it attends to.
    context: Tensor
    # [batch, latent channels, h, w]: a first idea of a drawing, or of an edit's new things in their places; else zeros.
    sketch: Tensor
    # [batch, 1, h, w]: 1 where the sketch stands in the source's place.
    cover: Tensor

    def without(self, empty: Tensor, dropped: Tensor) -> Request:
        """The empty request, whose context is ``empty`` ``[queries, width]``, where ``dropped`` ``[batch]`` says so."""
        kept = ~dropped[:, None, None, None]
        context = torch.where(dropped[:, None, None], empty, self.context)
        return Request(context, self.sketch * kept, self.cover * kept)


@dataclass(frozen=True)
class Source:
    """What the denoising network sees of the source of an edit; all zeros where something is drawn."""

    # [batch, latent channels, h, w]
    latents: Tensor
    # [batch, channels, h, w]
    features: Tensor
    # [batch, 1, h, w] in 0..1: where the edit belongs, as the user marked it or as the tool found it.
    region: Tensor

    def masked(self, keep: Tensor) -> Source:
        """Only the samples of ``keep`` ``[batch]`` bool have a source; the others draw."""
        kept = keep[:, None, None, None].to(self.latents.dtype)
        return Source(self.latents * kept, self.features * kept, self.region * kept)

    def stacked(self) -> Tensor:
        """All of it on channels, ``[batch, channels, h, w]``."""
        return torch.cat([self.latents, self.features, self.region], dim=1)
