"""What a PIIP network is made of: its branches, and how neighbours meet.

Branches stand in the order of the paper: the first has the most parameters and the lowest resolution.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

VitSize = Literal["T", "S", "B", "L", "H", "6B"]
ConvNextSize = Literal["T", "S", "B", "L"]

# Drop path is constant over a branch's depth, as in the released detection configurations.
_VIT_SIZES: dict[VitSize, dict[str, Any]] = {
    "T": {"width": 192, "depth": 12, "heads": 3, "drop_path": 0.05},
    "S": {"width": 384, "depth": 12, "heads": 6, "drop_path": 0.05},
    "B": {"width": 768, "depth": 12, "heads": 12, "drop_path": 0.15},
    "L": {"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.4},
    "H": {"width": 1280, "depth": 32, "heads": 16, "drop_path": 0.4},
    "6B": {
        "width": 3200,
        "depth": 48,
        "heads": 25,
        "drop_path": 0.4,
        "qkv_bias": False,
        "norm": "rms_norm",
        "query_key_norm": True,
        "layer_scale": 0.1,
    },
}
_CONVNEXT_SIZES: dict[ConvNextSize, dict[str, Any]] = {
    "T": {"widths": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
    "S": {"widths": (96, 192, 384, 768), "depths": (3, 3, 27, 3)},
    "B": {"widths": (128, 256, 512, 1024), "depths": (3, 3, 27, 3)},
    "L": {"widths": (192, 384, 768, 1536), "depths": (3, 3, 27, 3)},
}


class _Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VitBranchConfig(_Strict):
    """A vision transformer; ``size`` gives the published widths, depths and settings, other keys override them."""

    kind: Literal["vit"] = "vit"
    size: VitSize | None = None
    # Side in pixels of the picture that this branch sees. Pictures of other sizes are seen in the same proportion.
    resolution: PositiveInt
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0
    patch_size: PositiveInt = 16
    # Side in cells of the windows of attention; None: every cell sees all others.
    window: PositiveInt | None = None
    # Layers, from 0, that see everything in spite of ``window``.
    global_layers: tuple[NonNegativeInt, ...] = ()
    # Side in cells of the learnt position table; it is resized to the picture. None: that of ``resolution``.
    position_side: PositiveInt | None = None
    # BEiT: a learnt bias for every distance between two cells, in each layer, in place of the position table.
    relative_positions: bool = False
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_epsilon: PositiveFloat = 1e-6
    qkv_bias: bool = True
    query_key_norm: bool = False
    # CLIP: another norm before the first layer, no bias of the patches, and an activation of its own.
    embedding_norm: bool = False
    patch_bias: bool = True
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    # First value of the factors on both residuals.
    layer_scale: PositiveFloat = 1.0
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    # Carried along beside the cells; interactions never see it.
    class_token: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        return _filled(values, _VIT_SIZES)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads cannot share a width of {self.width}")
        if any(layer >= self.depth for layer in self.global_layers):
            raise ValueError(f"global_layers: the branch has {self.depth} layers, from 0 to {self.depth - 1}")
        if self.class_token and self.window is not None:
            raise ValueError("class_token: it sees everything, so window must be unset")
        return self

    @property
    def stride(self) -> int:
        """Pixels a side of a cell of the branch's last map."""
        return self.patch_size

    @property
    def table_side(self) -> int:
        """Side in cells of the position table."""
        return self.position_side or self.resolution // self.patch_size

    def slices(self, stages: int) -> tuple[int, ...]:
        """Layers of each stage; where they do not come out even, the last stages have one more."""
        short, longer = divmod(self.depth, stages)
        return (short,) * (stages - longer) + (short + 1,) * longer

    def widths_after(self, stages: int) -> tuple[int, ...]:
        """Channels of the map after each stage."""
        return (self.width,) * stages


class ConvNextBranchConfig(_Strict):
    """A ConvNeXt; a down-sampling between two of its levels counts as a block."""

    kind: Literal["convnext"] = "convnext"
    size: ConvNextSize | None = None
    resolution: PositiveInt
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    layer_scale: PositiveFloat = 1e-6
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    # Blocks of each stage; None: as in the released configurations, which have 12 stages.
    blocks_by_stage: tuple[PositiveInt, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        return _filled(values, _CONVNEXT_SIZES)

    @property
    def stride(self) -> int:
        """Pixels a side of a cell of the branch's last map."""
        return 32

    @property
    def blocks(self) -> int:
        """All blocks, with the three down-samplings."""
        return sum(self.depths) + 3

    def slices(self, stages: int) -> tuple[int, ...]:
        """Blocks of each stage: one stage for each level but the third, which has all that are left.

        Raises ValueError where that does not come out even and ``blocks_by_stage`` is unset.
        """
        if self.blocks_by_stage is not None:
            if len(self.blocks_by_stage) != stages or sum(self.blocks_by_stage) != self.blocks:
                raise ValueError(f"blocks_by_stage: {self.blocks} blocks in {stages} stages are wanted")
            return self.blocks_by_stage
        if stages == 1:
            return (self.blocks,)
        first, second, third, fourth = self.depths
        if stages < 4 or third % (stages - 3):
            raise ValueError(f"blocks_by_stage: must say how {self.blocks} blocks become {stages} stages")
        each = third // (stages - 3)
        return (first, 1 + second, 1 + each, *(each,) * (stages - 4), 1 + fourth)

    def widths_after(self, stages: int) -> tuple[int, ...]:
        """Channels of the map after each stage."""
        first, second, third, _ = self.depths
        last_blocks = (first, first + 1 + second, first + second + 2 + third, self.blocks)
        widths, done = [], 0
        for count in self.slices(stages):
            done += count
            widths.append(next(width for width, last in zip(self.widths, last_blocks, strict=True) if done <= last))
        return tuple(widths)


def _kind(value: Any) -> Any:
    """A branch that does not say what it is is a transformer."""
    return value.get("kind", "vit") if isinstance(value, dict) else getattr(value, "kind", None)


BranchConfig = Annotated[
    Annotated[VitBranchConfig, Tag("vit")] | Annotated[ConvNextBranchConfig, Tag("convnext")], Discriminator(_kind)
]


class InteractionConfig(_Strict):
    """How two neighbours meet after a stage. The values are those of every published model."""

    # 0: branches never meet before they are merged.
    stages: NonNegativeInt = 12
    heads: PositiveInt = 16
    points: PositiveInt = 4
    # Widths of the sampled values and of the feed-forward layer, as shares of the branch's.
    value_ratio: PositiveFloat = 0.5
    feed_forward_ratio: PositiveFloat = 0.25
    drop_path: float = Field(default=0.4, ge=0, lt=1)
    # False: without the projection to the other's width and the three norms, the released setting for speed.
    projects_and_norms: bool = True


class PiipConfig(_Strict):
    """A pyramid of one to four branches."""

    branches: tuple[BranchConfig, ...] = Field(min_length=1, max_length=4)
    interaction: InteractionConfig = InteractionConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        shortest = min(
            branch.depth if isinstance(branch, VitBranchConfig) else branch.blocks for branch in self.branches
        )
        if self.interaction.stages > shortest:
            raise ValueError(f"interaction.stages: the shortest branch has only {shortest} blocks")
        for number, branch in enumerate(self.branches):
            widths = branch.widths_after(self.stages)
            values = [int(width * self.interaction.value_ratio) for width in widths]
            if len(self.branches) > 1 and self.interaction.stages and any(v % self.interaction.heads for v in values):
                raise ValueError(
                    f"branches.{number}: {self.interaction.heads} heads of the interaction cannot share values of "
                    f"width {values[0]}"
                )
        return self

    @property
    def stages(self) -> int:
        """Slices that every branch is cut into."""
        return max(1, self.interaction.stages)

    @property
    def finest(self) -> VitBranchConfig | ConvNextBranchConfig:
        """The branch that sees the most pixels."""
        return self.branches[-1]

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Channels of each branch's last map."""
        return tuple(branch.widths_after(self.stages)[-1] for branch in self.branches)


def _filled(values: Any, sizes: dict[Any, dict[str, Any]]) -> Any:
    """``values`` over those of the size that they name."""
    if isinstance(values, dict) and values.get("size") in sizes:
        return sizes[values["size"]] | values
    return values
