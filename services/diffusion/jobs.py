"""Requests to the diffusion tool, validated: nothing left to parse when the model thread gets them."""

from __future__ import annotations

import secrets
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.diffusion.configuration import DiffusionConfig
from services.diffusion.framing import frame
from services.diffusion.structures import DiffusionOptions
from services.runtime.progress import ProgressReports
from superlink.errors import invalid_argument
from superlink.v1 import decoder_pb2

EDITING_ROUTE = "[EDIT]"
MOST_STEPS = 100
MOST_GUIDANCE = 30.0
MOST_IMAGES = 4
# Pixels of a side, in multiples of the stride of latents that are halved once.
SMALLEST_SIDE, LARGEST_SIDE, SIDE_MULTIPLE = 32, 1024, 16
# Seeds that are not asked for stay below this, so that every JSON reader keeps them exact.
_RANDOM_SEEDS = 2**32
_SEEDS = 2**64


@dataclass(frozen=True)
class DrawingRequest:
    """What the options of a request ask for."""

    edits: bool
    options: DiffusionOptions
    # The seed of each image of a group.
    seeds: tuple[int, ...]
    # Height and width that an edit should have; None: its source's.
    edited_size: tuple[int | None, int | None]

    @property
    def kind(self) -> Hashable:
        """Requests of equal kind can go through the network together."""
        return self.edits, self.options


@dataclass(frozen=True)
class DrawingJob:
    """A request as the model thread gets it: one row an image."""

    # [images, queries, link_width] float32.
    links: Tensor
    seeds: tuple[int, ...]
    options: DiffusionOptions
    # Of edits: [images, 3, side, side] in -1..1.
    sources: Tensor | None
    # Of edits: [images, 1, side, side] in 0..1, zeros where nothing is marked.
    region_maps: Tensor | None
    reports: ProgressReports

    @property
    def size_bytes(self) -> int:
        """What the job adds to a batch: its images in float32."""
        return len(self.seeds) * 3 * 4 * self.options.height * self.options.width


def read_request(request: decoder_pb2.DecodeRequest, config: DiffusionConfig) -> DrawingRequest:
    """The options of a request, with the defaults of ``config``. Raises SuperlinkError (INVALID_ARGUMENT)."""
    edits = _edits(request)
    options = request.diffusion
    steps = options.steps if options.HasField("steps") else config.default_steps
    if not 1 <= steps <= MOST_STEPS:
        raise _out_of_range("steps", steps, 1, MOST_STEPS)
    guidance = options.guidance if options.HasField("guidance") else config.default_guidance
    image_guidance = options.image_guidance if options.HasField("image_guidance") else config.default_image_guidance
    for name, value in (("guidance", guidance), ("image_guidance", image_guidance)):
        if not 0 <= value <= MOST_GUIDANCE:
            raise _out_of_range(name, value, 0, MOST_GUIDANCE)
    count = options.count if options.HasField("count") else 1
    if not 1 <= count <= MOST_IMAGES:
        raise _out_of_range("count", count, 1, MOST_IMAGES)
    width = _side("width", options.width) if options.HasField("width") else None
    height = _side("height", options.height) if options.HasField("height") else None
    seed = options.seed if options.HasField("seed") else secrets.randbelow(_RANDOM_SEEDS)
    side = config.image_side
    return DrawingRequest(
        edits=edits,
        options=DiffusionOptions(
            steps=steps,
            guidance=guidance,
            # Of no meaning where something is drawn, and nothing that should keep such requests apart.
            image_guidance=image_guidance if edits else config.default_image_guidance,
            width=side if edits or width is None else width,
            height=side if edits or height is None else height,
        ),
        seeds=tuple((seed + number) % _SEEDS for number in range(count)),
        edited_size=(height, width),
    )


def frame_region(mask: NDArray[np.bool_], side: int) -> Tensor:
    """The marked pixels ``[height, width]`` of a source as its region map ``[1, side, side]`` in 0..1."""
    grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    return torch.from_numpy(frame(grey, side)[None, ..., 0].copy()).float() / 255


def _edits(request: decoder_pb2.DecodeRequest) -> bool:
    """Whether the request edits; one call does not both draw and edit."""
    kinds = {group.route == EDITING_ROUTE for group in request.groups}
    if len(kinds) > 1:
        raise invalid_argument(
            "mixed_routes", "A request either draws or edits. Send groups that edit in a request of their own."
        )
    edits = kinds == {True}
    if not edits and any(group.HasField("region") for group in request.groups):
        raise invalid_argument("unsupported_region", "A region marks what to edit; a drawing has nothing to mark.")
    return edits


def _side(name: str, pixels: int) -> int:
    if not SMALLEST_SIDE <= pixels <= LARGEST_SIDE or pixels % SIDE_MULTIPLE:
        raise invalid_argument(
            "invalid_option",
            f"{name} is {pixels}; it must be a multiple of {SIDE_MULTIPLE} in {SMALLEST_SIDE}..{LARGEST_SIDE}.",
        )
    return pixels


def _out_of_range(name: str, value: float, least: float, most: float) -> Exception:
    return invalid_argument("invalid_option", f"{name} is {value:g}; it must lie in {least:g}..{most:g}.")
