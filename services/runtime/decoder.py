"""The Python contract of every decoder: the trainer and the worker use the very same class, so they cannot drift."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Outputs = TypeVar("Outputs")
Targets = TypeVar("Targets")
Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a kind of thing."""

    # What such things are called: ("person", "people").
    names: tuple[str, ...]
    # As a request names them: ("nose", "left eye", ...).
    keypoints: tuple[str, ...]
    # Pairs of places in ``keypoints`` between which a line is drawn.
    bones: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DecoderSpec:
    """What a decoder declares of itself; the worker's ``Describe`` answers from it."""

    name: str
    version: str
    # Routing tokens it answers: ("[DET]",).
    routes: tuple[str, ...]
    # Width of one link embedding.
    link_width: int
    queries_per_group: int
    # Must equal the adapter version of the MLLM's projection head.
    adapter_version: str
    max_groups: int
    # Calibrated probability from which a result counts as there; 0 for decoders without scores.
    score_threshold: float = 0.0
    # Whether a group may mean a marked region; see ``Decoder.forward``.
    takes_regions: bool = False
    # That of ``routes`` whose groups name keypoints of what the groups before them mean; see ``Decoder.forward``.
    keypoint_route: str = ""
    skeletons: tuple[Skeleton, ...] = ()


@dataclass(frozen=True)
class PreparedImage:
    """An image as a decoder wants it."""

    # [3, height, width] float32, normalised.
    pixels: Tensor
    # Height and width of the upright original in pixels.
    original_size: tuple[int, int]


class Decoder(nn.Module, ABC, Generic[Outputs, Targets, Options, Result]):
    """A vision tool: an image and link embeddings in, a result out.

    The order at serving time is ``prepare`` (CPU thread) -> ``encode`` (model thread, cached by image digest) ->
    ``forward`` -> ``decode``; training runs ``encode``, ``forward`` and ``loss``.
    """

    spec: DecoderSpec

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Turn an upright RGB image ``[height, width, 3]`` into the decoder's input."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Image features by level, each ``[batch, channels, height, width]``, that do not depend on the links."""

    @abstractmethod
    def forward(self, features: tuple[Tensor, ...], links: Tensor, link_mask: Tensor) -> Outputs:
        """Run the decoder.

        ``links`` is ``[batch, groups, link_width]`` and ``link_mask`` ``[batch, groups]`` bool, True where a group is
        real. What stands in masked places never changes the outputs of real groups. A decoder whose spec takes regions
        is also given ``regions``, ``services.runtime.regions.GroupRegions``, where a request has any; their places are
        relative to the square of the image's longer side that ``prepare`` pads to. A decoder whose spec has a keypoint
        route is always given ``names_keypoint``, ``[batch, groups]`` bool; such groups come last in every request.
        """

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is what is minimised."""

    @abstractmethod
    def decode(
        self,
        outputs: Outputs,
        sizes: Sequence[tuple[int, int]],
        group_counts: Sequence[int],
        options: Sequence[Options],
    ) -> list[Result]:
        """One result an image, in pixels of the upright originals of ``sizes`` (height, width)."""


def pad_links(links: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack link embeddings ``[groups_i, width]`` of several requests.

    Returns ``[batch, max_groups, width]`` zero-padded and the bool mask ``[batch, max_groups]``.
    """
    width = links[0].shape[-1]
    longest = max(link.shape[0] for link in links)
    padded = links[0].new_zeros(len(links), longest, width)
    mask = torch.zeros(len(links), longest, dtype=torch.bool, device=links[0].device)
    for row, link in enumerate(links):
        padded[row, : link.shape[0]] = link
        mask[row, : link.shape[0]] = True
    return padded, mask
