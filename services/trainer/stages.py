"""Which class trains which stage."""

from __future__ import annotations

import torch

from services.trainer.adaptation_stage import AdaptationStage
from services.trainer.autoencoder_stage import AutoencoderStage
from services.trainer.chat_stage import ChatStage
from services.trainer.classification_stage import ClassificationStage
from services.trainer.detector_stage import DetectorStage
from services.trainer.diffusion_stage import DiffusionStage
from services.trainer.distillation_stage import DistillationStage
from services.trainer.image_pyramid_stage import ImagePyramidStage
from services.trainer.joint_stage import JointStage
from services.trainer.latent_compression_stage import LatentCompressionStage
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
    "adaptation": AdaptationStage,
    "distillation": DistillationStage,
    "classification": ClassificationStage,
    "latent_compression": LatentCompressionStage,
    "image_pyramid": ImagePyramidStage,
}


def make_stage(recipe: Recipe) -> Stage:
    """Build the stage that ``recipe`` names, with its models; new ones begin as the recipe's seed says."""
    torch.manual_seed(recipe.seed)
    return _STAGES[recipe.stage](recipe)
