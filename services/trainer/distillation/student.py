"""The student: a new InternViT, or one that begins with the weights of another vision transformer."""

from __future__ import annotations

from pathlib import Path

from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.mllm.model import begin_internvit
from services.mllm.towers import VisionSize
from services.trainer.distillation import clip_weights
from services.trainer.distillation.tower_folder import fill, read_fields, read_tensors, read_tower


def make_student(vision: VisionSize, tile_size: int) -> InternVLVisionModel:
    """A new one, for tiles of ``tile_size`` pixels a side."""
    tower = InternVLVisionModel(vision.library_config(tile_size))
    begin_internvit(tower, vision)
    return tower


def start_from(tower: InternVLVisionModel, folder: Path) -> None:
    """Give ``tower`` the weights in ``folder``: a CLIP of the same shape, or what ``read_tower`` reads.

    Where CLIP has another number of places, its positions are interpolated. Raises WeightsError.
    """
    if read_fields(folder).get("model_type") in clip_weights.MODEL_TYPES:
        patches = tower.embeddings.position_embeddings.shape[1] - 1
        fill(tower, clip_weights.internvit_state(read_tensors(folder, clip_weights.PREFIXES), patches), folder)
    else:
        fill(tower, read_tower(folder).state_dict(), folder)
