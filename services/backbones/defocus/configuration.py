"""What a De-focus network is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

# "none": there is none. "fixed": as it was initialised. "learnable": the paper's.
Learning = Literal["none", "fixed", "learnable"]

# The published sizes.
EncoderSize = Literal["vit_small", "vit_base", "retnet_base", "mamba_small", "mamba_base", "mamba_large"]

# Channels that are normalised together after the selective scan.
SCAN_GROUP = 64


class Settings(BaseModel):
    """Base of the models here: unknown keys are errors and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Attention(Settings):
    """De-focus ViT: softmax attention whose logits decay with the distance (eq. 8)."""

    kind: Literal["attention"] = "attention"
    heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0
    causal: bool = True
    decay: Learning = "learnable"
    phase: Learning = "learnable"
    # Decays a token begin between these, spread evenly over the heads on a logarithmic scale. Vertical neighbours are a
    # row apart in the sequence: some heads must still see so far.
    slowest_decay: PositiveFloat = 0.002
    fastest_decay: PositiveFloat = 0.2

    @model_validator(mode="after")
    def _decay_looks_back(self) -> Attention:
        if not self.causal and self.decay != "none":
            raise ValueError("decay is defined for causal attention; set decay: none or causal: true")
        return self


class Retention(Settings):
    """De-focus RetNet: linear attention that decays with the distance (eq. 4)."""

    kind: Literal["retention"] = "retention"
    heads: PositiveInt
    # With two-fold values and this ratio a network of ViT-B's width and depth has the published 94.1 M parameters.
    mlp_ratio: PositiveFloat = 2.5
    # Width of the values in widths of the network.
    value_factor: PositiveInt = 2
    decay: Learning = "learnable"
    phase: Learning = "learnable"
    slowest_decay: PositiveFloat = 0.002
    fastest_decay: PositiveFloat = 0.5


class Mamba(Settings):
    """De-focus Mamba: a selective state space whose inputs and outputs turn with the index (eq. 9)."""

    kind: Literal["mamba"] = "mamba"
    state_size: PositiveInt = 16
    # The published rank, the same in all sizes.
    time_step_rank: PositiveInt = 48
    phase: Learning = "learnable"
    # The released weights turn neighbours by different angles, which is no rotation: the result depends on where in the
    # sequence two tokens are, not only on how far they are apart. Only those weights want it so.
    released_phase: bool = False


# Of ViT and RetNet the paper says the parameters only. DeiT with its positions and a second head has those of the ViTs.
_SIZES: dict[EncoderSize, dict[str, Any]] = {
    "vit_small": {"mixer": Attention(heads=6), "width": 384, "depth": 12, "positions": "learned"},
    "vit_base": {"mixer": Attention(heads=12), "width": 768, "depth": 12, "positions": "learned"},
    "retnet_base": {"mixer": Retention(heads=12), "width": 768, "depth": 12},
    "mamba_small": {"mixer": Mamba(), "width": 384, "depth": 24},
    "mamba_base": {"mixer": Mamba(), "width": 768, "depth": 24},
    # Pre-trained at 192 pixels, fine-tuned at 384: four times the tokens, twice the side.
    "mamba_large": {
        "mixer": Mamba(),
        "width": 1024,
        "depth": 48,
        "image_size": 384,
        "rope_scale": 4.0,
        "delta_scale": 2.0,
    },
}


class EncoderConfig(Settings):
    """A network from pixels to features of every token; ``size`` gives published values, other keys override them."""

    size: EncoderSize | None = None
    mixer: Annotated[Attention | Retention | Mamba, Field(discriminator="kind")]
    width: PositiveInt
    depth: PositiveInt
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 16
    # Pixels beyond its own that a patch sees on each side.
    patch_margin: NonNegativeInt = 0
    channels: PositiveInt = 3
    # "learned": one vector a token, as in DeiT; images then have one size.
    positions: Literal["none", "learned"] = "none"
    # For sequences longer than those of pre-training: what the index and the time steps are divided by.
    rope_scale: PositiveFloat = 1.0
    delta_scale: PositiveFloat = 1.0
    # Standard deviation that weights begin with; the published one fits widths of some hundreds.
    initial_deviation: PositiveFloat = 0.02

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("size") in _SIZES:
            return _SIZES[values["size"]] | values
        return values

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncoderConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if isinstance(self.mixer, Mamba):
            if 2 * self.width % SCAN_GROUP:
                raise ValueError(f"width {self.width} is no multiple of {SCAN_GROUP // 2}, as the selective scan needs")
        elif self.width % (2 * self.mixer.heads):
            raise ValueError(f"width {self.width} does not give {self.mixer.heads} heads an even width each")
        return self

    @property
    def causal(self) -> bool:
        """Whether tokens see only those before them, so that a sequence can be fed in pieces."""
        return not isinstance(self.mixer, Attention) or self.mixer.causal

    @property
    def tokens(self) -> int:
        """Tokens of an image of ``image_size``, without the class token."""
        return (self.image_size // self.patch_size) ** 2


class ClassifierConfig(Settings):
    """An encoder with its heads."""

    encoder: EncoderConfig
    classes: PositiveInt
    # "tanh": two layers around a hyperbolic tangent, as in the models of ImageNet-22k.
    head: Literal["linear", "tanh"] = "linear"
    # The second head judges the mean of the image tokens (section 3.3), or every image token (the released code).
    auxiliary: Literal["none", "pooled", "tokens"] = "pooled"
