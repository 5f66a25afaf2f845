"""Trains the diffusion tool: it draws and edits at the word of its vocabulary, which stands in the MLLM's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from services.detection.model import Detector
from services.diffusion.autoencoder import encode_pixels
from services.diffusion.model import Diffuser
from services.diffusion.storage import load_autoencoder
from services.diffusion.structures import Source
from services.runtime.weights import WEIGHTS_FILE
from services.trainer.autoencoder_stage import to_pixels
from services.trainer.diffusion_evaluation import evaluate_diffuser
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import CONCEPTS, DRAWING_OPTIONS, Drawing, draw_drawing, draw_edit_drawing
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.sprites import load_sprites
from services.trainer.stage import Stage

# Noise on the rows, relative to their length: the MLLM's links will never be exact.
_LINK_NOISE = 0.1
# Drawings and edits that a run learns from. Latents and features of each are computed when it first comes up and kept:
# on a CPU that takes as long as the training step itself. Some 30 kB each.
_POOL = 16_000
# Share of the edits whose place is marked.
_MARKED = 0.5
# The average over steps reaches this far back once it may.
_AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class _Sample:
    # Which of the pool it is.
    number: int
    # None where it is known already.
    drawing: Drawing | None


@dataclass(frozen=True)
class _Known:
    """A drawing or an edit as the denoising network meets it; half precision saves memory."""

    # The vocabulary's row of each slot.
    slots: Tensor
    latents: Tensor
    # Latents, fine and coarse features, and the map of the regions; of an edit alone.
    source: tuple[Tensor, Tensor, Tensor, Tensor] | None


class DiffusionStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.diffuser = start_diffuser(recipe)
        # What is evaluated and exported.
        self.average = AveragedModel(self.diffuser, avg_fn=_average).requires_grad_(False)
        self.model = nn.ModuleDict({"diffuser": self.diffuser, "average": self.average})
        self.composer = Composer(load_sprites(recipe.data.sprites), DRAWING_OPTIONS)
        self.detector = Detector.load(recipe.start_from["detector"]).eval()
        self._known: dict[int, _Known] = {}

    def compose(self, composer: Composer, seed: int) -> _Sample:  # noqa: ARG002  (drawings have a composer of their own)
        """Half drawings, half edits, the same again after as many as the pool holds."""
        number = seed % _POOL
        if number in self._known:
            return _Sample(number, None)
        rng = np.random.default_rng((self.recipe.data.first_seed, number))
        if number % 2:
            return _Sample(number, draw_edit_drawing(self.composer, self.recipe.data.first_seed + number, rng))
        return _Sample(number, draw_drawing(self.composer, rng))

    def prepare(self, scene: _Sample, seed: int) -> _Sample:  # noqa: ARG002  (nothing here is left to chance)
        """Nothing more: encoding needs the model."""
        return scene

    def collate(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """See ``Stage``."""
        return list(samples)

    def losses(self, batch: list[_Sample]) -> dict[str, Tensor]:
        """See ``Diffuser.loss``."""
        # The step before has changed the weights.
        self.average.update_parameters(self.diffuser)
        for sample in batch:
            if sample.drawing is not None:
                self._known[sample.number] = self._encode(sample.drawing)
        known = [self._known[sample.number] for sample in batch]
        device = self.diffuser.vocabulary.weight.device
        latents = torch.stack([one.latents for one in known]).float().to(device)
        rows = self.diffuser.vocabulary(torch.stack([one.slots for one in known]).to(device))
        links = rows + torch.randn_like(rows) * rows.std() * _LINK_NOISE
        without_text, without_source = self.diffuser.drop(len(known))
        edits = torch.tensor([one.source is not None for one in known], device=device)
        source = self._sources(known, latents).masked(edits & ~without_source)
        context = self.diffuser.mapper.without(self.diffuser.mapper(links), without_text)
        return {"velocity": self.diffuser.loss(latents, context, source)}

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """As many drawings and as many edits as there are scenes; see ``evaluate_diffuser``."""
        return evaluate_diffuser(self.average.module, self.detector, self.composer, len(scenes))

    def export(self, folder: Path) -> None:
        """The averaged weights, as the service loads them."""
        self.average.module.save(folder)

    @torch.no_grad()
    def _encode(self, drawing: Drawing) -> _Known:
        device = self.diffuser.vocabulary.weight.device
        latents = encode_pixels(self.diffuser.autoencoder, to_pixels(drawing.target.image)[None].to(device))
        source = None
        if drawing.source is not None:
            pixels = to_pixels(drawing.source.image)[None].to(device)
            fine, coarse = self.diffuser.source_encoder.extract(pixels)
            source = (
                _kept(encode_pixels(self.diffuser.autoencoder, pixels)),
                _kept(fine),
                _kept(coarse),
                _kept(self.diffuser.shrink_regions(region_map(drawing)[None].to(device))),
            )
        return _Known(slots=torch.tensor(drawing.slots.indices), latents=_kept(latents), source=source)

    def _sources(self, known: Sequence[_Known], latents: Tensor) -> Source:
        """What the network is shown of each sample's source; of drawings, zeros."""
        source = self.diffuser.no_source(len(known), *latents.shape[-2:])
        places = [place for place, one in enumerate(known) if one.source is not None]
        if not places:
            return source
        found = [one.source for one in known if one.source is not None]
        seen, fine, coarse, region = (
            torch.stack(parts).float().to(latents.device) for parts in zip(*found, strict=True)
        )
        marked = torch.rand(len(places), 1, 1, 1, device=latents.device) < _MARKED
        index = torch.tensor(places, device=latents.device)
        return Source(
            latents=source.latents.index_copy(0, index, seen),
            features=source.features.index_copy(0, index, self.diffuser.source_encoder.project(fine, coarse)),
            region=source.region.index_copy(0, index, region * marked),
        )


def start_diffuser(recipe: Recipe) -> Diffuser:
    """The tool of an earlier run (``start_from.diffuser``), or a new one.

    A new one has the vocabulary's rows of ``start_from.vocabulary``, which the MLLM is taught as well, the autoencoder
    of ``start_from.autoencoder`` and the backbone of ``start_from.detector``.
    """
    if "diffuser" in recipe.start_from:
        return Diffuser.load(recipe.start_from["diffuser"])
    diffuser = Diffuser(recipe.diffusion.model_copy(update={"vocabulary": len(CONCEPTS)}))
    rows = load_file(recipe.start_from["vocabulary"] / WEIGHTS_FILE)["vocabulary"]
    diffuser.vocabulary.load_state_dict({"weight": rows})
    diffuser.autoencoder = load_autoencoder(recipe.start_from["autoencoder"])
    backbone = Detector.load(recipe.start_from["detector"]).backbone.state_dict()
    wanted = diffuser.source_encoder.backbone.state_dict()
    diffuser.source_encoder.backbone.load_state_dict({name: backbone[name] for name in wanted})
    for frozen in (diffuser.vocabulary, diffuser.autoencoder):
        frozen.requires_grad_(False)
    return diffuser


def region_map(drawing: Drawing) -> Tensor:
    """``[1, height, width]``, 1 inside the boxes of ``drawing.regions``."""
    region = torch.zeros(1, drawing.target.height, drawing.target.width)
    for x1, y1, x2, y2 in drawing.regions:
        region[:, int(y1) : int(y2), int(x1) : int(x2)] = 1
    return region


def _kept(batch_of_one: Tensor) -> Tensor:
    return batch_of_one[0].half().cpu()


def _average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """An average that reaches back a tenth of the run at first, so that it forgets the start."""
    decay = min(_AVERAGE_DECAY, (1 + int(steps)) / (10 + int(steps)))
    return averaged.lerp(current, 1 - decay)
