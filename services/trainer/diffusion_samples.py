"""Drawings and edits as the diffusion tool's networks meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.diffusion.autoencoder import LATENT_STRIDE, encode_pixels
from services.diffusion.model import Diffuser
from services.diffusion.source_encoder import join_scales
from services.trainer.autoencoder_stage import to_pixels
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import CONCEPT_INDEX, NOTHING, Drawing, draw_picture
from services.trainer.scenes.scene import Scene


@dataclass(frozen=True)
class EncodedSource:
    """The source of an edit, seen by what does not learn, and where the edit belongs."""

    # [channels, h, w]
    latents: Tensor
    # The frozen backbone's features at two scales.
    fine: Tensor
    coarse: Tensor
    # [boxes, 4] x1, y1, x2, y2 in shares of width and height: of what the edit is about.
    boxes: Tensor
    # [h, w] shares 0..1 of the pixels that show what is named, and any thing.
    named: Tensor
    things: Tensor
    # Concept of each category that is shown, and its [h, w] map.
    shown: tuple[tuple[int, Tensor], ...]
    # Whether something is put where nothing is named.
    added: bool


@dataclass(frozen=True)
class EncodedDrawing:
    """A drawing or an edit, encoded by what does not learn; on the CPU and in half precision, to be kept."""

    # [8] int64: the vocabulary's row of each slot.
    slots: Tensor
    # [channels, h, w] of the wanted image.
    latents: Tensor
    # [channels, side, side]: what the sketch should be; None of an edit that puts in nothing new.
    sketch: Tensor | None
    # Of an edit alone.
    source: EncodedSource | None


class DrawingEncoder:
    """Looks at drawings through the parts of a tool that do not learn."""

    def __init__(self, diffuser: Diffuser, composer: Composer) -> None:
        self._diffuser = diffuser
        self._composer = composer
        # By category: [channels, side, side] of one alone in the middle of an image.
        self._pictures: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, drawing: Drawing) -> EncodedDrawing:
        """See ``EncodedDrawing``."""
        latents = self._latents(self._pixels(drawing.target))
        source: EncodedSource | None = None
        sketch: Tensor | None = latents
        if drawing.source is not None:
            source = self._encode_source(drawing, drawing.source)
            new = {"add": drawing.slots.category, "replace": drawing.slots.other}.get(drawing.slots.operation, NOTHING)
            sketch = self._picture(new) if new != NOTHING else None
        return EncodedDrawing(torch.tensor(drawing.slots.indices), latents, sketch, source)

    def _picture(self, key: str) -> Tensor:
        if key not in self._pictures:
            picture = draw_picture(self._composer, CATEGORIES[CATEGORY_INDEX[key]])
            self._pictures[key] = self._latents(self._pixels(picture))
        return self._pictures[key]

    def _pixels(self, scene: Scene) -> Tensor:
        return to_pixels(scene.image)[None].to(self._diffuser.vocabulary.weight.device)

    def _latents(self, pixels: Tensor) -> Tensor:
        return _kept(encode_pixels(self._diffuser.autoencoder, pixels))

    def _encode_source(self, drawing: Drawing, scene: Scene) -> EncodedSource:
        pixels = self._pixels(scene)
        fine, coarse = self._diffuser.source_encoder.extract(pixels)
        masks: dict[str, NDArray[np.bool_]] = {}
        nothing = np.zeros((scene.height, scene.width), dtype=np.bool_)
        for thing in scene.objects:
            masks[thing.category.key] = masks.get(thing.category.key, nothing) | thing.mask
        things = np.any([nothing, *masks.values()], axis=0)
        slots = drawing.slots
        named = ~things if slots.operation == "ground" else masks.get(slots.category, nothing)
        size = np.array([scene.width, scene.height, scene.width, scene.height])
        return EncodedSource(
            latents=self._latents(pixels),
            fine=_kept(fine),
            coarse=_kept(coarse),
            boxes=torch.from_numpy(np.reshape(drawing.regions, (-1, 4)) / size).float(),
            named=_shares(named),
            things=_shares(things),
            shown=tuple((CONCEPT_INDEX[key], _shares(mask)) for key, mask in masks.items()),
            added=slots.operation == "add",
        )


def stack_features(sources: Sequence[EncodedSource], device: torch.device) -> Tensor:
    """The features of ``sources`` at both scales, joined, ``[sources, channels, h, w]`` float32."""
    fine = torch.stack([source.fine.float() for source in sources])
    coarse = torch.stack([source.coarse.float() for source in sources])
    return join_scales(fine.to(device), coarse.to(device))


def _shares(mask: NDArray[np.bool_]) -> Tensor:
    pixels = torch.from_numpy(mask).float()[None]
    return torch.nn.functional.avg_pool2d(pixels, LATENT_STRIDE)[0].half()


def _kept(batch_of_one: Tensor) -> Tensor:
    return batch_of_one[0].half().cpu()
