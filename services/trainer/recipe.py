"""A recipe: one YAML file that says what a training run trains, on what, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from services.detection.configuration import DetectorConfig
from services.diffusion.configuration import DiffusionConfig
from services.mllm.super_link import QueryTables
from services.pose.configuration import PoseConfig
from services.segmentation.configuration import SegmenterConfig
from services.trainer.adaptation.plan import Adaptation
from services.trainer.classification.plan import Classification
from services.trainer.distillation.plan import Distillation
from services.trainer.image_pyramid.plan import ImagePyramidPlan
from services.trainer.latent_compression.plan import LatentCompression
from superlink.configuration import Section, load_yaml


class Schedule(Section):
    """How long, how large, how fast."""

    steps: PositiveInt
    # Scenes, or conversation rows, a step on each rank.
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    # Multiplies the learning rate of the parts it names: {"mllm": 0.3, "detector.backbone": 0.1}.
    learning_rate_factors: dict[str, float] = {}
    weight_decay: float = Field(default=0.01, ge=0)
    # Matrices without weight decay, by their own name, the last part of their path: ["log_rates", "positions"].
    undecayed: tuple[str, ...] = ()
    warmup_steps: int = Field(default=100, ge=0)
    # The cosine ends at this share of the learning rate.
    final_learning_rate: float = Field(default=0.02, ge=0, le=1)
    gradient_clip: PositiveFloat = 1.0
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    adam_epsilon: PositiveFloat = 1e-8
    precision: Literal["float32", "bfloat16"] = "float32"


class Data(Section):
    """Where samples come from: scenes are composed as they are needed and never stored."""

    styles: tuple[str, ...] = ("noto", "twemoji", "openmoji")
    # First scene seed of the run; the run uses one seed a sample from here on.
    first_seed: int = Field(default=0, ge=0)
    smallest_side: PositiveInt = 128
    largest_side: PositiveInt = 320
    # Share of the scenes that lie on grounds with a name (grass, sky); segmenters learn grounds on these. In joint
    # training 0 leaves those of the segmenter at its own share.
    named_grounds: float = Field(default=0.0, ge=0, le=1)
    # People and deer in a scene, at most. In joint training only the pose estimator's scenes show them, as many as it
    # likes where this is 0.
    most_figures: int = Field(default=0, ge=0)
    # The file that `make sprites` writes; unset: where it writes by default.
    sprites: Path | None = None
    # Processes that compose scenes; 0 composes them in the training process.
    workers: int = Field(default=1, ge=0)
    # Conversations a scene is talked about in, beside the one that the detector sees.
    extra_conversations: int = Field(default=1, ge=0)


class Evaluation(Section):
    """Evaluation during training."""

    every_steps: PositiveInt = 500
    scenes: PositiveInt = 96


class Checkpoints(Section):
    """Checkpoints for resuming."""

    every_steps: PositiveInt = 250


class Link(Section):
    """The super link. How many queries a group has is said with its decoder: ``detector.queries_per_group``."""

    query_tables: QueryTables = "separate"
    # Leave query tables and projection heads of ``start_from.mllm`` behind; new ones begin at random.
    begins_anew: bool = False


class Recipe(Section):
    """One training run."""

    name: str
    # detector: the detector alone, with its vocabulary in place of the MLLM's link embeddings. segmenter, pose:
    # likewise.
    # words: the language model alone, without sight. chat: the MLLM alone, on conversations. joint: MLLM and decoders,
    # through the super link. autoencoder: the diffusion tool's, on pixels alone.
    # diffusion: the diffusion tool, likewise with a vocabulary. adaptation: the MLLM alone, on conversation rows.
    # distillation: a vision tower alone, from a larger one, on pictures.
    # classification: a De-focus network alone, on handwritten digits.
    # latent_compression: a vision encoder from scratch, on interleaved documents.
    # image_pyramid: a PIIP network alone, on pattern fields.
    stage: Literal[
        "detector",
        "segmenter",
        "pose",
        "words",
        "chat",
        "joint",
        "autoencoder",
        "diffusion",
        "adaptation",
        "distillation",
        "classification",
        "latent_compression",
        "image_pyramid",
    ]
    seed: int = 0
    threads: PositiveInt = 2
    schedule: Schedule
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    # Scenes on which a run of the joint or the pose stage calibrates its decoders at its end.
    calibration_scenes: PositiveInt = 1000
    link: Link = Link()
    detector: DetectorConfig = DetectorConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    pose: PoseConfig = PoseConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    adaptation: Adaptation | None = None
    distillation: Distillation | None = None
    classification: Classification | None = None
    latent_compression: LatentCompression | None = None
    image_pyramid: ImagePyramidPlan | None = None
    # Modules that do not learn, by their path: ["mllm.internvl.model.vision_tower"].
    frozen: tuple[str, ...] = ()
    # Folders of earlier runs' exports to start from: {"detector": "runs/detector/export"}.
    start_from: dict[str, Path] = {}
    # Joint training: which decoders learn, and how large a share of the steps each has: {"pose": 1.0}.
    decoders: dict[Literal["detection", "segmentation", "pose", "diffusion"], PositiveFloat] = Field(
        default={"detection": 1.0}, min_length=1
    )
    # Folders of decoders whose vocabularies the MLLM's links learn: {"pose": "runs/pose/export"}.
    vocabularies: dict[str, Path] = {}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigurationError naming the key and the nearest valid one."""
    return load_yaml(path, Recipe)
