"""The diffusion tool's sizes, as stored in ``config.json`` beside its parts."""

from __future__ import annotations

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from superlink.configuration import Section


class AutoencoderConfig(Section):
    """Pixels to latents of one eighth of the side and back."""

    latent_channels: PositiveInt = 8
    # At one half, one quarter and one eighth of the resolution. Nothing is computed at full resolution, where most of
    # a CPU's time would go.
    channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128)
    encoder_blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)
    decoder_blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 2)


class MapperConfig(Section):
    """The transformer between link embeddings and the network's cross-attention (VisionLLM v2 section 3.2)."""

    width: PositiveInt = 128
    heads: PositiveInt = 4
    encoder_layers: PositiveInt = 1
    decoder_layers: PositiveInt = 1
    # Learned queries, each an entry of the context that the denoising network attends to.
    queries: PositiveInt = 77


class SourceEncoderConfig(Section):
    """The residual network through which an edit sees its source."""

    base_channels: PositiveInt = 32
    # Channels that the denoising network gets.
    channels: PositiveInt = 24


class SketcherConfig(Section):
    """The network that turns links into a first idea of the picture."""

    # Which links name a thing to be drawn, counted from 0.
    things: tuple[NonNegativeInt, ...] = Field(default=(2, 4), min_length=1)
    hidden: PositiveInt = 512
    # Numbers that describe a thing, and channels of the picture before it is latents.
    width: PositiveInt = 192
    channels: PositiveInt = 48
    # Of a sketch, in latents; a thing takes up half of it.
    side: PositiveInt = 16


class FinderConfig(Section):
    """The head that finds where an edit belongs."""

    width: PositiveInt = 96


class DenoiserConfig(Section):
    """The network that removes noise from latents."""

    channels: tuple[PositiveInt, ...] = (64, 128, 192)
    # Resolutions that attend to the request, finest first.
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: PositiveInt = 1
    heads_width: PositiveInt = 32


class DiffusionConfig(Section):
    """A latent diffusion model whose prompts are link embeddings."""

    name: str = "diffusion"
    version: str = "0"
    # Must equal the adapter version of the MLLM's projection head for this tool.
    adapter_version: str = "0"
    routes: tuple[str, ...] = ("[GEN]", "[EDIT]")
    queries_per_group: PositiveInt = 64
    link_width: PositiveInt = 128
    max_groups: PositiveInt = 8
    # Concepts that the tool was trained with; their rows stand in place of links in training.
    vocabulary: NonNegativeInt = 0
    # Side in pixels of the images that it was trained on.
    image_side: PositiveInt = 128
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    mapper: MapperConfig = MapperConfig()
    source_encoder: SourceEncoderConfig = SourceEncoderConfig()
    sketcher: SketcherConfig = SketcherConfig()
    finder: FinderConfig = FinderConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    # Noise levels that training draws from.
    training_steps: PositiveInt = 1000
    # Shares of the training samples without text alone, without text and source, and without source alone.
    # InstructPix2Pix takes 0.05 of each.
    dropped_text: float = Field(default=0.05, ge=0, le=1)
    dropped_both: float = Field(default=0.05, ge=0, le=1)
    dropped_source: float = Field(default=0.05, ge=0, le=1)
    # What a request takes that names nothing else.
    default_steps: PositiveInt = 20
    default_guidance: PositiveFloat = 2.0
    default_image_guidance: PositiveFloat = 1.5

    @model_validator(mode="after")
    def _names_links_that_there_are(self) -> Self:
        last = max(self.sketcher.things)
        if last >= self.queries_per_group:
            raise ValueError(
                f"sketcher.things: link {last} names a thing, but a group has {self.queries_per_group} links "
                "(queries_per_group), counted from 0."
            )
        return self
