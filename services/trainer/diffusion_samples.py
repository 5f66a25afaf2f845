"""Drawings and edits as the denoising network meets them, and its loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.diffusion.autoencoder import encode_pixels
from services.diffusion.model import Diffuser
from services.diffusion.structures import Source
from services.trainer.autoencoder_stage import to_pixels
from services.trainer.scenes.drawings import Drawing

# Share of the edits whose place is marked.
_MARKED = 0.5


@dataclass(frozen=True)
class EncodedDrawing:
    """A drawing or an edit, encoded by what does not learn; on the CPU and in half precision, to be kept."""

    # [8] int64: the vocabulary's row of each slot.
    slots: Tensor
    # [channels, h, w] of the wanted image.
    latents: Tensor
    # Latents, fine and coarse features, and the map of the regions; of an edit alone.
    source: tuple[Tensor, Tensor, Tensor, Tensor] | None


@torch.no_grad()
def encode_drawing(diffuser: Diffuser, drawing: Drawing) -> EncodedDrawing:
    """Look at ``drawing`` through the autoencoder and, if it is an edit, at its source through the backbone."""
    device = diffuser.vocabulary.weight.device
    latents = encode_pixels(diffuser.autoencoder, to_pixels(drawing.target.image)[None].to(device))
    source = None
    if drawing.source is not None:
        pixels = to_pixels(drawing.source.image)[None].to(device)
        fine, coarse = diffuser.source_encoder.extract(pixels)
        source = (
            _kept(encode_pixels(diffuser.autoencoder, pixels)),
            _kept(fine),
            _kept(coarse),
            _kept(diffuser.shrink_regions(_region_map(drawing)[None].to(device))),
        )
    return EncodedDrawing(slots=torch.tensor(drawing.slots.indices), latents=_kept(latents), source=source)


def denoising_loss(diffuser: Diffuser, links: Tensor, drawings: Sequence[EncodedDrawing]) -> Tensor:
    """``Diffuser.loss`` of ``drawings``, asked for by ``links`` ``[drawings, queries, link_width]``.

    Some lose what asks for them, some their source, some both; see ``Diffuser.drop``.
    """
    latents = torch.stack([drawing.latents.float() for drawing in drawings]).to(links.device)
    without_text, without_source = diffuser.drop(len(drawings))
    edits = torch.tensor([drawing.source is not None for drawing in drawings], device=links.device)
    source = _sources(diffuser, drawings, latents).masked(edits & ~without_source)
    context = diffuser.mapper.without(diffuser.mapper(links), without_text)
    return diffuser.loss(latents, context, source)


def _sources(diffuser: Diffuser, drawings: Sequence[EncodedDrawing], latents: Tensor) -> Source:
    """What the network is shown of each drawing's source; of those without, zeros."""
    source = diffuser.no_source(len(drawings), *latents.shape[-2:])
    places = [place for place, drawing in enumerate(drawings) if drawing.source is not None]
    if not places:
        return source
    found = [drawing.source for drawing in drawings if drawing.source is not None]
    seen, fine, coarse, region = (
        torch.stack([part.float() for part in parts]).to(latents.device) for parts in zip(*found, strict=True)
    )
    marked = torch.rand(len(places), 1, 1, 1, device=latents.device) < _MARKED
    index = torch.tensor(places, device=latents.device)
    return Source(
        latents=source.latents.index_copy(0, index, seen),
        features=source.features.index_copy(0, index, diffuser.source_encoder.project(fine, coarse)),
        region=source.region.index_copy(0, index, region * marked),
    )


def _region_map(drawing: Drawing) -> Tensor:
    """``[1, height, width]``, 1 inside the boxes of ``drawing.regions``."""
    region = torch.zeros(1, drawing.target.height, drawing.target.width)
    for x1, y1, x2, y2 in drawing.regions:
        region[:, int(y1) : int(y2), int(x1) : int(x2)] = 1
    return region


def _kept(batch_of_one: Tensor) -> Tensor:
    return batch_of_one[0].half().cpu()
