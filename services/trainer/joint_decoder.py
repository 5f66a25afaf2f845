"""What joint training asks of a decoder: conversations that need it, and a loss on the links that answer them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from services.mllm.conversation import RoutedPhrase
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation
from services.trainer.scenes.scene import Scene
from services.trainer.vocabularies import Vocabulary

# Links ``[phrases, (queries,) link_width]`` of phrases that the fast path asks one decoder about a scene, or without
# any image.
LinkPhrases = Callable[[Scene | None, Sequence[RoutedPhrase]], Tensor]
# The same of rows of the decoder's vocabulary, by the words that stand for them.
LinkCategories = Callable[[Scene, list[int]], Tensor]


class JointDecoder(ABC):
    """A decoder in joint training.

    A sample is made of a *subject*, a scene for most decoders, and of one conversation about it, all of whose phrases
    are routed to this decoder.
    """

    # Its name in a profile: "detection".
    name: str
    # Modules by the names under which recipes freeze them and give them learning rates.
    parts: Mapping[str, nn.Module]
    vocabulary: Vocabulary

    def compose(self, composer: Composer, seed: int) -> Any:
        """The subject of sample ``seed``, in the recipe's world; runs in a data process.

        Figures are for the pose estimator alone: nobody else has learned to tell them from the ground.
        """
        return composer.adapted(most_figures=0).compose(seed)

    def shown(self, subject: Any) -> Scene:
        """What the MLLM sees of a subject."""
        scene: Scene = subject
        return scene

    @abstractmethod
    def converse(self, subject: Any, rng: np.random.Generator) -> Conversation:
        """A conversation about ``subject`` that needs this decoder and no other."""

    @abstractmethod
    def prepare(self, subject: Any, conversation: Conversation) -> Any:
        """What the decoder learns from the subject."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples."""

    @abstractmethod
    def losses(self, links: Sequence[Tensor], batch: Any) -> dict[str, Tensor]:
        """Weighted loss terms; ``links`` ``[phrases, (queries,) link_width]`` are those of every conversation."""

    @abstractmethod
    def evaluate(self, link: LinkPhrases, subjects: Sequence[Any]) -> dict[str, float]:
        """Figures on held-out subjects, asked through links of the fast path."""

    @abstractmethod
    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:
        """Calibrate its scores where it has any, and write what its service loads and what a later run needs."""
