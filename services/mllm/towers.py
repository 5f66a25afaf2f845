"""The vision towers that an MLLM can have, by the ``kind`` in its configuration. This is the only list of them.

A tower turns tiles ``[tiles, 3, side, side]`` into a grid ``[tiles, hidden_size, side / patch_size, ...]``.
After it come the pixel unshuffle and a projector: InternVL's, unless the tower brings its own.

Each configuration says ``hidden_size`` (channels of the grid) and ``patch_size`` (pixels a side of a cell), and has
``build`` for the network and ``build_projector`` for its projector, if any. To add a tower, write such a class and
name it in ``Tower``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, PositiveFloat, PositiveInt, Tag, model_validator
from torch import nn
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from services.backbones.clip_vit import ClipVit, clip_vit_config
from services.backbones.defocus.configuration import EncoderConfig
from services.backbones.defocus.tower import SectionedTower
from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.tower import BranchProjectors, PyramidTower
from superlink.configuration import Section


class VisionSize(Section):
    """InternVL's own: a vision transformer, and what feeds it. ``InternVLForConditionalGeneration`` builds it."""

    kind: Literal["vit"] = "vit"
    # "linear": one strided convolution, as published. "convolutional": a residual stem in its place, which learns to
    # see from far fewer pictures than a plain transformer does.
    patch_embedding: Literal["linear", "convolutional"] = "convolutional"
    stem_channels: PositiveInt = 32
    hidden_size: PositiveInt = 192
    layers: PositiveInt = 3
    heads: PositiveInt = 6
    intermediate_size: PositiveInt = 512
    patch_size: PositiveInt = 16
    layer_scale: PositiveFloat = 1.0

    def library_config(self, tile_size: int) -> InternVLVisionConfig:
        """As transformers says it, for tiles of ``tile_size`` pixels a side."""
        return InternVLVisionConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            attention_bias=True,
            image_size=(tile_size, tile_size),
            patch_size=(self.patch_size, self.patch_size),
            layer_scale_init_value=self.layer_scale,
            use_mean_pooling=True,
        )


class PiipTower(Section):
    """An image pyramid. The tile is what its finest branch sees; PIIP-LLaVA has two branches.

    Published with ``downsample_ratio: 1.0`` of the MLLM: as many tokens as the finest branch has cells.
    """

    kind: Literal["piip"] = "piip"
    piip: PiipConfig

    @property
    def hidden_size(self) -> int:
        """The branches' channels stand side by side, on the grid of the finest."""
        return sum(self.piip.widths)

    @property
    def patch_size(self) -> int:
        """Pixels a side of a cell of the finest branch."""
        return self.piip.finest.stride

    def build(self) -> nn.Module:
        """The branches with their interactions."""
        return PyramidTower(self.piip)

    def build_projector(self, neighbours: int, text_width: int) -> nn.Module | None:
        """One projector a branch, summed; a token is made of ``neighbours`` cells."""
        return BranchProjectors(self.piip.widths, neighbours, text_width)


class DefocusTower(Section):
    """A De-focus encoder, as causal as the language model."""

    kind: Literal["defocus"] = "defocus"
    encoder: EncoderConfig
    # Patches a side of the parts that larger tiles are read in: those of the pictures in pre-training.
    section: PositiveInt = 14

    @property
    def hidden_size(self) -> int:
        """Channels of the grid."""
        return self.encoder.width

    @property
    def patch_size(self) -> int:
        """Pixels a side of a cell."""
        return self.encoder.patch_size

    def build(self) -> nn.Module:
        """The encoder, reading section by section."""
        return SectionedTower(self.encoder, self.section)

    def build_projector(self, neighbours: int, text_width: int) -> nn.Module | None:
        """None: InternVL's."""
        del neighbours, text_width


class ClipTower(Section):
    """A vision transformer as CLIP has it, which latent compression learning trains from scratch."""

    kind: Literal["clip"] = "clip"
    # Side of the pictures in pre-training; tiles of other sizes get interpolated positions.
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12

    @property
    def tokens(self) -> int:
        """Patches of a picture in pre-training."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _patches_fill_the_picture(self) -> ClipTower:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return self

    def build(self) -> ClipVit:
        """The encoder."""
        return ClipVit(clip_vit_config(self.image_size, self.patch_size, self.hidden_size, self.layers, self.heads))

    def build_projector(self, neighbours: int, text_width: int) -> nn.Module | None:
        """None: InternVL's."""
        del neighbours, text_width
        return None  # noqa: RET501  (the type is not None alone)


def _kind(value: Any) -> Any:
    """Configurations from before there were several towers do not say which one they have."""
    return value.get("kind", "vit") if isinstance(value, dict) else getattr(value, "kind", None)


Tower = Annotated[
    Annotated[VisionSize, Tag("vit")]
    | Annotated[PiipTower, Tag("piip")]
    | Annotated[DefocusTower, Tag("defocus")]
    | Annotated[ClipTower, Tag("clip")],
    Discriminator(_kind),
]
