"""What a recipe says about adaptation: on which conversations, what learns, how samples are packed and weighted.

The defaults are those of the published adaptation scripts (Mini-InternVL, section 3.3 and its repository).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from services.mllm.config import LanguageSize
from services.mllm.towers import Tower, VisionSize
from services.trainer.adaptation.loss_reduction import Reduction
from services.trainer.adaptation.packing import PackLimits
from superlink.configuration import Section

# What learns; see ``tuning``.
Trains = Literal["full", "vit_frozen", "projector", "vit_and_projector", "lora"]


class Replay(Section):
    """General conversations that are mixed in."""

    # Their meta file.
    meta: Path
    # General rows for each row of the domain.
    ratio: NonNegativeFloat


class Packing(Section):
    """When a pack is full; see ``packing.PackLimits``."""

    tokens: PositiveInt = 16384
    tiles: PositiveInt = 48
    open_packs: PositiveInt = 20
    # Longer rows are cut where images begin, or replaced by the next one.
    sample_tokens: PositiveInt = 8192

    def limits(self, context: int) -> PackLimits:
        """As packs are formed by, for a model that reads ``context`` tokens at most."""
        return PackLimits(self.tokens, self.tiles, self.open_packs, min(self.sample_tokens, context))


class NewModel(Section):
    """An InternVL-shaped model that begins at random."""

    # Meta files whose words its tokenizer learns.
    texts: tuple[Path, ...] = Field(min_length=1)
    # Tokens at most, the 256 bytes and the special ones included.
    vocabulary: PositiveInt = 1024
    tile_size: PositiveInt = 64
    vision: Tower = VisionSize()
    language: LanguageSize = LanguageSize()


class NewTower(Section):
    """A vision tower that begins at random, and a projector, in place of those of ``start_from.mllm``."""

    tile_size: PositiveInt
    vision: Tower


class Adaptation(Section):
    """The adaptation stage; a sample is a row of the meta file."""

    # What is learned.
    meta: Path
    # What the model forgets without; unset: nothing is mixed in.
    replay: Replay | None = None
    # A meta file whose rows are evaluated during training.
    held_out: Path | None = None
    trains: Trains = "full"
    # Of ``lora``.
    lora_rank: PositiveInt = 16
    # Stochastic depth of the vision tower: the rate of its last layer.
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    loss_reduction: Reduction = "square"
    # Tiles of an image at most, the thumbnail apart; ``max_dynamic_patch`` of a data set comes first.
    max_tiles: PositiveInt = 12
    # Frames of a video that are looked at.
    video_frames: PositiveInt = 8
    packing: Packing = Packing()
    # Compute the layers' inner states again on the way back, for a third of the memory and a third more time.
    gradient_checkpointing: bool = False
    # In place of ``start_from.mllm``.
    new_model: NewModel | None = None
    # Of ``start_from.mllm`` words, links and tokenizer stay.
    new_tower: NewTower | None = None

    @model_validator(mode="after")
    def _rank_belongs_to_lora(self) -> Adaptation:
        if self.trains != "lora" and "lora_rank" in self.model_fields_set:
            raise ValueError(f"lora_rank means nothing where trains is {self.trains!r}, only with 'lora'")
        return self
