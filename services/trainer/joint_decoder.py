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

# Links ``[phrases, link_width]`` of phrases that the fast path asks one decoder about a scene.
LinkPhrases = Callable[[Scene, Sequence[RoutedPhrase]], Tensor]
# The same of rows of the decoder's vocabulary, by the words that stand for them.
LinkCategories = Callable[[Scene, list[int]], Tensor]


class JointDecoder(ABC):
    """A decoder in joint training.

    A sample is made of a scene and of one conversation about it, all of whose phrases are routed to this decoder.
    """

    # Its name in a profile: "detection".
    name: str
    # Modules by the names under which recipes freeze them and give them learning rates.
    parts: Mapping[str, nn.Module]
    vocabulary: Vocabulary

    @abstractmethod
    def converse(self, scene: Scene, rng: np.random.Generator) -> Conversation:
        """A conversation about ``scene`` that needs this decoder and no other."""

    @abstractmethod
    def prepare(self, scene: Scene, conversation: Conversation) -> Any:
        """What the decoder learns from the scene."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples."""

    @abstractmethod
    def losses(self, links: Sequence[Tensor], batch: Any) -> dict[str, Tensor]:
        """Weighted loss terms; ``links`` are those of each scene's conversation, ``[phrases, link_width]``."""

    @abstractmethod
    def evaluate(self, link: LinkPhrases, scenes: Sequence[Scene]) -> dict[str, float]:
        """Figures on held-out scenes, asked through links of the fast path."""

    @abstractmethod
    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:
        """Calibrate its scores where it has any, and write what its service loads and what a later run needs."""
