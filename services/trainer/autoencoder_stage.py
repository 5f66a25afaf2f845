"""Trains the diffusion tool's autoencoder on scenes, drawings and edits, all at the tool's own size.

It goes on from ``start_from.autoencoder`` where a recipe has that. With ``frozen: [autoencoder.encoder]`` the latents
stay what they are, and a denoising network that has learnt them stays good.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.diffusion.autoencoder import decode_latents, encode_pixels, make_autoencoder
from services.diffusion.storage import load_autoencoder
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import DRAWING_OPTIONS, draw_drawing, draw_edit_drawing
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.sprites import load_sprites
from services.trainer.stage import SceneStage

# What the latents are shaken by in training: they must mean the same when a denoising network only nearly hits them.
_LATENT_NOISE = 0.1
# Holds the latents near unit size, against that noise.
_SIZE_WEIGHT = 0.001
# More than this, and flat images are what it learns first.
_EDGE_WEIGHT = 0.05
# Side of the pieces that it learns from: many small ones teach more in the same time than a few whole images.
_PIECE_SIDE = 64
# Scenes from which the scaling factor is taken.
_SCALING_SCENES = 60


class AutoencoderStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        earlier = recipe.start_from.get("autoencoder")
        self.autoencoder = load_autoencoder(earlier) if earlier else make_autoencoder(recipe.diffusion.autoencoder)
        self.model = nn.ModuleDict({"autoencoder": self.autoencoder})
        self.composer = Composer(load_sprites(recipe.data.sprites), DRAWING_OPTIONS)

    def compose(self, composer: Composer, seed: int) -> Scene:  # noqa: ARG002  (drawings have a composer of their own)
        """A third each of scenes, of things drawn and of things edited."""
        kind = seed % 3
        if kind == 0:
            return self.composer.compose(seed)
        rng = np.random.default_rng(seed)
        if kind == 1:
            return draw_drawing(self.composer, rng).target
        return draw_edit_drawing(self.composer, seed, rng).target

    def prepare(self, scene: Scene, seed: int) -> Tensor:
        """A random piece of the scene, ``[3, 64, 64]`` in -1..1."""
        rng = np.random.default_rng(seed)
        top, left = (int(rng.integers(extent - _PIECE_SIDE + 1)) for extent in scene.image.shape[:2])
        return to_pixels(scene.image[top : top + _PIECE_SIDE, left : left + _PIECE_SIDE])

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """See ``Stage``."""
        return torch.stack(list(samples))

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """Squared error of pixels, absolute error of their differences, which are the edges, and the latents' size."""
        pixels = batch.to(self.autoencoder.device)
        latents = encode_pixels(self.autoencoder, pixels)
        shaken = latents + torch.randn_like(latents) * _LATENT_NOISE
        wrong = decode_latents(self.autoencoder, shaken) - pixels
        edges = wrong.diff(dim=2).abs().mean() + wrong.diff(dim=3).abs().mean()
        return {
            "pixels": wrong.square().mean(),
            "edges": _EDGE_WEIGHT * edges,
            "size": _SIZE_WEIGHT * latents.square().mean(),
        }

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """PSNR in dB of scenes and of drawings, and the latents' standard deviation."""
        drawings = [draw_drawing(self.composer, np.random.default_rng(number)).target for number in range(len(scenes))]
        figures = {}
        for name, held_out in (("scenes", scenes), ("drawings", drawings)):
            pixels = torch.stack([to_pixels(scene.image) for scene in held_out]).to(self.autoencoder.device)
            latents = encode_pixels(self.autoencoder, pixels)
            figures[f"psnr_{name}"] = psnr(decode_latents(self.autoencoder, latents).clamp(-1, 1), pixels)
            figures[f"deviation_{name}"] = float(latents.std())
        return figures

    def export(self, folder: Path) -> None:
        """The autoencoder as diffusers stores it, with the factor that brings its latents to unit size.

        Of a frozen encoder the factor stays as well: it is a part of what a denoising network has learnt.
        """
        if any(parameter.requires_grad for parameter in self.autoencoder.encoder.parameters()):
            self._rescale()
        self.autoencoder.save_pretrained(folder / "vae")

    def _rescale(self) -> None:
        scenes = [self.compose(self.composer, seed) for seed in range(_SCALING_SCENES)]
        with torch.no_grad():
            pixels = self.collate([to_pixels(scene.image) for scene in scenes]).to(self.autoencoder.device)
            deviation = encode_pixels(self.autoencoder, pixels).std()
        # Latents are encoded with the factor of the run that this one goes on from.
        factor = self.autoencoder.config.scaling_factor / float(deviation)
        self.autoencoder.register_to_config(scaling_factor=factor)


def to_pixels(image: NDArray[np.uint8]) -> Tensor:
    """``[height, width, 3]`` uint8 to ``[3, height, width]`` float32 in -1..1."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; both ``[batch, 3, height, width]`` in -1..1."""
    error = (made - wanted).square().flatten(1).mean(dim=1)
    return float((10 * torch.log10(4 / error.clamp(min=1e-10))).mean())
