"""The diffusion tool: link embeddings, and for an edit an image, in; an image out.

Latent diffusion (Rombach et al. 2022) on diffusers' networks; edits as in InstructPix2Pix (Brooks et al. 2023), with
the source on the channels of the denoising network's input and a guidance scale of its own. One network draws and
edits: what is drawn has no source. VisionLLM v2 section 3.2 has two networks and puts the links in the text encoder's
place in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from services.diffusion.autoencoder import LATENT_STRIDE, decode_latents, encode_pixels, make_autoencoder
from services.diffusion.configuration import DiffusionConfig
from services.diffusion.finder import Finder
from services.diffusion.framing import frame
from services.diffusion.layers import difference_layer
from services.diffusion.mapper import LinkMapper
from services.diffusion.placing import Layout, Square, lay_out, place_sketches
from services.diffusion.sketcher import Sketcher, resize_sketch
from services.diffusion.source_encoder import SourceEncoder, join_scales
from services.diffusion.storage import load_parts, save_parts
from services.diffusion.structures import DiffusionOptions, Request, Source
from services.runtime.decoder import DecoderSpec, PreparedImage
from services.runtime.weights import read_config


class Diffuser(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = DecoderSpec(
            name=config.name,
            version=config.version,
            routes=config.routes,
            link_width=config.link_width,
            queries_per_group=config.queries_per_group,
            adapter_version=config.adapter_version,
            max_groups=config.max_groups,
        )
        # One link a concept: what the tool learns to be asked in before any MLLM speaks to it.
        self.vocabulary = nn.Embedding(config.vocabulary, config.link_width)
        self.mapper = LinkMapper(config.mapper, config.link_width, config.queries_per_group)
        queries = config.queries_per_group
        self.sketcher = Sketcher(config.sketcher, config.link_width, queries, config.autoencoder.latent_channels)
        self.source_encoder = SourceEncoder(config.source_encoder)
        self.finder = Finder(config.finder, sum(self.source_encoder.backbone.channels[1:]), config.link_width, queries)
        self.autoencoder: AutoencoderDC = make_autoencoder(config.autoencoder)
        self.denoiser = _make_denoiser(config)
        self.scheduler = DDIMScheduler(
            num_train_timesteps=config.training_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            # Latents are no pixels: they have no fixed range.
            clip_sample=False,
            # The first step starts from noise alone, as training does at its last level.
            timestep_spacing="trailing",
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote, ready for inference. Raises WeightsError when the folder is missing or damaged."""
        diffuser = cls(read_config(folder, DiffusionConfig))
        load_parts(diffuser, folder)
        return diffuser.eval()

    def save(self, folder: Path) -> None:
        """Write diffusers' layout, and beside it the parts that are our own; see ``storage``."""
        save_parts(self, folder)

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """The source of an edit, upright RGB ``[height, width, 3]``, as a square of ``config.image_side`` in -1..1."""
        square = torch.from_numpy(frame(image, self.config.image_side)).permute(2, 0, 1)
        return PreparedImage(pixels=square.float() / 127.5 - 1, original_size=(image.shape[0], image.shape[1]))

    def see(self, pixels: Tensor, links: Tensor, region_maps: Tensor | None = None) -> tuple[Source, Layout]:
        """What the denoising network is shown of sources ``[batch, 3, side, side]`` in -1..1, and where edits belong.

        ``links`` ``[batch, links, link_width]`` say what is asked. ``region_maps`` ``[batch, 1, side, side]`` is 1
        where the user marked what the edit is about; where nothing is marked the tool finds it.
        """
        latents = encode_pixels(self.autoencoder, pixels)
        if region_maps is None:
            region_maps = pixels.new_zeros(len(pixels), 1, *pixels.shape[-2:])
        features = join_scales(*self.source_encoder.extract(pixels))
        # The share of each latent's pixels that is marked.
        layout = lay_out(self.finder(features, links), nn.functional.avg_pool2d(region_maps, LATENT_STRIDE))
        return Source(latents, self.source_encoder(features), layout.region), layout

    def request(
        self, links: Tensor, sketches: Tensor, squares: Sequence[Sequence[Square] | None], rows: int, columns: int
    ) -> Request:
        """What ``links`` ``[batch, links, link_width]`` ask for in an image of ``rows`` by ``columns`` latents.

        ``sketches`` are the sketcher's of these links. ``squares`` are the places of an edit's new things; None where
        something is drawn, whose sketch is everywhere.
        """
        placed, cover = place_sketches(sketches, [places or [] for places in squares], rows, columns)
        drawn = torch.tensor([places is None for places in squares], device=sketches.device)[:, None, None, None]
        sketch = torch.where(drawn, resize_sketch(sketches, rows, columns), placed)
        return Request(self.mapper(links), sketch, torch.where(drawn, torch.ones_like(cover), cover))

    def no_source(self, images: int, rows: int, columns: int) -> Source:
        """What the denoising network is shown where there is no source."""
        channels = (self.config.autoencoder.latent_channels, self.config.source_encoder.channels, 1)
        device = self.vocabulary.weight.device
        return Source(*(torch.zeros(images, width, rows, columns, device=device) for width in channels))

    def predict(self, noisy: Tensor, levels: Tensor, request: Request, source: Source) -> Tensor:
        """The denoising network: ``noisy`` latents ``[batch, channels, h, w]`` at ``levels`` ``[batch]`` int.

        Returns the velocity, shaped like ``noisy``. The network says what differs from the source and the sketch:
        without a word of its own, a drawing is its sketch and an edit leaves everything else as it is.
        """
        inputs = torch.cat([noisy, source.stacked(), request.sketch], dim=1)
        difference: Tensor = self.denoiser(
            inputs.contiguous(memory_format=torch.channels_last),
            levels,
            encoder_hidden_states=request.context,
            class_labels=request.context.mean(dim=1),
        ).sample
        noise = (1 - self.scheduler.alphas_cumprod.to(levels.device)[levels]).sqrt()
        start = source.latents * (1 - request.cover) + request.sketch
        return difference - noise[:, None, None, None] * start

    def drop(self, samples: int) -> tuple[Tensor, Tensor]:
        """Which training samples lose their text and which their source, bool ``[samples]`` each.

        One draw decides both, so that the configured shares are the actual ones (InstructPix2Pix section 3.2.1).
        """
        config = self.config
        draw = torch.rand(samples, device=self.vocabulary.weight.device)
        text = draw < config.dropped_text + config.dropped_both
        source = (draw >= config.dropped_text) & (
            draw < config.dropped_text + config.dropped_both + config.dropped_source
        )
        return text, source

    def loss(self, latents: Tensor, request: Request, source: Source) -> Tensor:
        """Squared error of the velocity at random noise levels, a scalar.

        ``latents`` ``[batch, channels, h, w]`` are those of the wanted images. All levels weigh alike: what is drawn is
        decided where there is most noise, which weights by signal all but leave out.
        """
        noise = torch.randn_like(latents)
        levels = torch.randint(self.config.training_steps, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, levels)
        velocity = self.scheduler.get_velocity(latents, noise, levels)
        return nn.functional.mse_loss(self.predict(noisy, levels, request, source), velocity)

    @torch.no_grad()
    def sample(
        self,
        links: Tensor,
        sources: Tensor | None,
        region_maps: Tensor | None,
        seeds: Sequence[int],
        options: DiffusionOptions,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Make one image for each row of ``links`` ``[batch, queries_per_group, link_width]``.

        Without ``sources`` they are drawn, ``options.width`` by ``options.height``, multiples of 16 pixels; with
        ``sources`` ``[batch, 3, side, side]`` in -1..1 these are edited, where ``region_maps``
        ``[batch, 1, side, side]`` in 0..1 may mark what is meant. The noise of an image depends on its seed alone, so
        that it is the same in any batch. ``on_step(done, total)`` is called after every step; what it raises ends the
        work. Returns ``[batch, 3, height, width]`` uint8; of an edit ``[batch, 4, side, side]``, a layer that lies over
        the source; its last channel is its opacity, see ``difference_layer``.
        """
        layout: Layout | None = None
        if sources is None:
            rows, columns = options.height // LATENT_STRIDE, options.width // LATENT_STRIDE
            source = self.no_source(len(links), rows, columns)
        else:
            source, layout = self.see(sources, links, region_maps)
            rows, columns = source.latents.shape[-2:]
        squares = layout.squares if layout else [None] * len(links)
        request = self.request(links, self.sketcher(links), squares, rows, columns)
        states = self._guiding(request, source, edits=layout is not None)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = self._noise(generators, rows, columns)
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(options.steps, device=latents.device)
        for done, level in enumerate(scheduler.timesteps, start=1):
            velocity = self._guided(latents, level, states, options)
            # New noise in every step washes out what a small network got wrong in the steps before.
            latents = scheduler.step(
                velocity, level, latents, eta=1.0, variance_noise=self._noise(generators, rows, columns)
            ).prev_sample
            on_step(done, options.steps)
        pixels = decode_latents(self.autoencoder, latents).clamp(-1, 1)
        if layout is not None:
            seen = decode_latents(self.autoencoder, source.latents).clamp(-1, 1)
            pixels = torch.cat([pixels, difference_layer(pixels, seen, layout.reach)], dim=1)
        return ((pixels + 1) * 127.5).round().to(torch.uint8)

    def _guiding(self, request: Request, source: Source, edits: bool) -> tuple[Request, Source]:
        """All that guidance compares, one after the other, the same in every step.

        Neither request nor source, then both; an edit has the source alone between them.
        """
        all_of_them = torch.ones(len(request.context), dtype=torch.bool, device=request.context.device)
        empty, nothing = request.without(self.mapper.empty, all_of_them), source.masked(~all_of_them)
        if edits:
            return _stack(Request, [empty, empty, request]), _stack(Source, [nothing, source, source])
        return _stack(Request, [empty, request]), _stack(Source, [nothing, source])

    def _guided(
        self, latents: Tensor, level: Tensor, states: tuple[Request, Source], options: DiffusionOptions
    ) -> Tensor:
        """The velocity with classifier-free guidance; ``states`` are those of ``_guiding``."""
        request, source = states
        parts = len(request.context) // len(latents)
        velocities = self.predict(
            latents.repeat(parts, 1, 1, 1), level.expand(parts * len(latents)), request, source
        ).chunk(parts)
        if parts == 2:
            free, asked = velocities
            return free + options.guidance * (asked - free)
        free, unasked, asked = velocities
        # InstructPix2Pix, equation 3.
        return free + options.image_guidance * (unasked - free) + options.guidance * (asked - unasked)

    def _noise(self, generators: Sequence[torch.Generator], rows: int, columns: int) -> Tensor:
        """``[images, channels, rows, columns]``, each image's from a generator of its own."""
        shape = (self.config.autoencoder.latent_channels, rows, columns)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.vocabulary.weight.device)


Conditions = TypeVar("Conditions", Request, Source)


def _stack(kind: type[Conditions], parts: Sequence[Conditions]) -> Conditions:
    """All samples of ``parts`` one after the other."""
    return kind(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(kind)))


def _make_denoiser(config: DiffusionConfig) -> UNet2DConditionModel:
    sizes, latents = config.denoiser, config.autoencoder.latent_channels
    denoiser = UNet2DConditionModel(
        sample_size=config.image_side // LATENT_STRIDE,
        # Noisy latents, the source's latents and features, the place, and the sketch.
        in_channels=3 * latents + config.source_encoder.channels + 1,
        out_channels=latents,
        block_out_channels=sizes.channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attention)),
        layers_per_block=sizes.layers_per_block,
        cross_attention_dim=config.mapper.width,
        attention_head_dim=tuple(max(1, width // sizes.heads_width) for width in sizes.channels),
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        # What is asked reaches every block beside the noise level, too: so a small network learns it sooner.
        class_embed_type="projection",
        projection_class_embeddings_input_dim=config.mapper.width,
    )
    denoiser.to(memory_format=torch.channels_last)
    return denoiser
