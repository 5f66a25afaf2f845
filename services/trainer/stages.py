"""Which class trains which stage."""

from __future__ import annotations

from services.trainer.autoencoder_stage import AutoencoderStage
from services.trainer.chat_stage import ChatStage
from services.trainer.detector_stage import DetectorStage
from services.trainer.diffusion_stage import DiffusionStage
from services.trainer.joint_stage import JointStage
from services.trainer.pose_stage import PoseStage
from services.trainer.recipe import Recipe
from services.trainer.segmenter_stage import SegmenterStage
from services.trainer.stage import Stage
from services.trainer.words_stage import WordsStage

_STAGES: dict[str, type[Stage]] = {
    "detector": DetectorStage,
    "segmenter": SegmenterStage,
    "pose": PoseStage,
    "words": WordsStage,
    "chat": ChatStage,
    "joint": JointStage,
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
}


def make_stage(recipe: Recipe) -> Stage:
    """Build the stage that ``recipe`` names, with its models."""
    return _STAGES[recipe.stage](recipe)
