"""What the diffusion tool's networks learn from encoded drawings and edits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.diffusion.finder import Places
from services.diffusion.model import Diffuser
from services.diffusion.placing import Square, region_of, square_around
from services.diffusion.structures import Source
from services.trainer.detector_stage import noisy_links
from services.trainer.diffusion_samples import EncodedDrawing, EncodedSource, stack_features
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.drawings import CONCEPT_INDEX, NOTHING

# Share of the edits whose place is marked.
_MARKED = 0.5
# Edits that are about what is named.
_NAMING = ("recolour", "replace", "remove")


def drawing_losses(diffuser: Diffuser, links: Tensor, drawings: Sequence[EncodedDrawing]) -> dict[str, Tensor]:
    """The loss of each network on ``drawings``, asked for by ``links`` ``[drawings, queries, link_width]``.

    - velocity: ``Diffuser.loss``, where some samples lose what asks for them, some their source, some both;
    - sketch: squared error of the sketch;
    - place, thing, verdict: cross-entropy of the finder's maps and of its two verdicts on the request.
    """
    latents = torch.stack([drawing.latents.float() for drawing in drawings]).to(links.device)
    source, squares, losses = _look(diffuser, links, drawings, latents)
    sketches = diffuser.sketcher(links)
    losses["sketch"] = _sketch_loss(sketches, drawings)
    without_text, without_source = diffuser.drop(len(drawings))
    edits = torch.tensor([drawing.source is not None for drawing in drawings], device=links.device)
    # The sketch has a loss of its own; what the denoising network would like to see is no sketch.
    request = diffuser.request(links, sketches.detach().float(), squares, *latents.shape[-2:])
    request = request.without(diffuser.mapper.empty, without_text)
    return {"velocity": diffuser.loss(latents, request, source.masked(edits & ~without_source)), **losses}


def finding_loss(diffuser: Diffuser, drawings: Sequence[EncodedDrawing]) -> Tensor:
    """Cross-entropy of the finder's map where rows of the vocabulary ask about everything that sources show.

    Each source is asked about each category in it and about one that chance finds.
    """
    sources = [drawing.source for drawing in drawings if drawing.source is not None]
    if not sources:
        return diffuser.vocabulary.weight.new_zeros(())
    asked, wanted, numbers = [], [], []
    for number, source in enumerate(sources):
        places = dict(source.shown)
        # Where that one is shown as well, it is asked about once.
        places.setdefault(_random_category(), torch.zeros_like(source.things))
        for concept, place in places.items():
            asked.append(_ask_about(concept))
            wanted.append(place)
            numbers.append(number)
    device = diffuser.vocabulary.weight.device
    features = stack_features(sources, device)[torch.tensor(numbers, device=device)]
    found = diffuser.finder(features, noisy_links(diffuser.vocabulary(torch.tensor(asked, device=device))))
    return _cross_entropy(found.named, wanted)


def _look(
    diffuser: Diffuser, links: Tensor, drawings: Sequence[EncodedDrawing], latents: Tensor
) -> tuple[Source, list[list[Square] | None], dict[str, Tensor]]:
    """What the network is shown of each source (zeros of drawings), where sketches go, and the finder's losses."""
    nothing = diffuser.no_source(len(drawings), *latents.shape[-2:])
    squares: list[list[Square] | None] = [None] * len(drawings)
    numbers = [number for number, drawing in enumerate(drawings) if drawing.source is not None]
    if not numbers:
        return nothing, squares, {}
    sources = [source for drawing in drawings if (source := drawing.source) is not None]
    index = torch.tensor(numbers, device=links.device)
    features = stack_features(sources, links.device)
    places = diffuser.finder(features, links[index])
    new = [drawings[number].sketch is not None for number in numbers]
    for number, source, puts in zip(numbers, sources, new, strict=True):
        squares[number] = [square_around(*box) for box in source.boxes.tolist()] if puts else []
    seen = torch.stack([source.latents.float() for source in sources]).to(links.device)
    shown = Source(
        latents=nothing.latents.index_copy(0, index, seen),
        features=nothing.features.index_copy(0, index, diffuser.source_encoder(features).float()),
        region=nothing.region.index_copy(0, index, _regions(places, sources)),
    )
    return shown, squares, _finder_losses(places, sources, torch.tensor(new, device=links.device))


def _regions(places: Places, sources: Sequence[EncodedSource]) -> Tensor:
    """``[sources, 1, h, w]``: the boxes that a user might mark, or what the finder finds."""
    found = places.named.detach().float().sigmoid()
    regions = []
    for number, source in enumerate(sources):
        # Nobody can know where the free place of an addition would be; edits of the ground have no box.
        marked = len(source.boxes) and (source.added or float(torch.rand(())) < _MARKED)
        boxes = [_rectangle(*box) for box in source.boxes.tolist()]
        regions.append(region_of(boxes, *source.named.shape).to(found) if marked else found[number])
    return torch.stack(regions)[:, None]


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> Square:
    return Square((x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2)


def _finder_losses(places: Places, sources: Sequence[EncodedSource], new: Tensor) -> dict[str, Tensor]:
    added = torch.tensor([source.added for source in sources], device=new.device)
    verdicts = torch.stack([places.new, places.added]).float()
    return {
        "place": _cross_entropy(places.named, [source.named for source in sources]),
        "thing": _cross_entropy(places.things, [source.things for source in sources]),
        "verdict": functional.binary_cross_entropy_with_logits(verdicts, torch.stack([new, added]).float()),
    }


def _cross_entropy(logits: Tensor, shares: Sequence[Tensor]) -> Tensor:
    wanted = torch.stack([share.float() for share in shares])
    return functional.binary_cross_entropy_with_logits(logits.float(), wanted.to(logits.device))


def _sketch_loss(sketches: Tensor, drawings: Sequence[EncodedDrawing]) -> Tensor:
    numbers = [number for number, drawing in enumerate(drawings) if drawing.sketch is not None]
    if not numbers:
        return sketches.sum() * 0
    wanted = torch.stack([sketch.float() for drawing in drawings if (sketch := drawing.sketch) is not None])
    return functional.mse_loss(sketches[torch.tensor(numbers, device=sketches.device)], wanted.to(sketches.device))


def _random_category() -> int:
    return CONCEPT_INDEX[CATEGORIES[int(torch.randint(len(CATEGORIES), ()))].key]


def _ask_about(concept: int) -> list[int]:
    """The rows of the slots of some edit that names ``concept``."""
    nothing = CONCEPT_INDEX[NOTHING]
    operation = _NAMING[int(torch.randint(len(_NAMING), ()))]
    return [CONCEPT_INDEX[operation], nothing, concept, *[nothing] * 5]
