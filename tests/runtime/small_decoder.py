"""A decoder of a few parameters: real torch, real weights on disk, a real worker process; it takes the time it is told.

``python small_decoder.py --profile FILE`` is its worker, as ``python -m services.detection.service`` is the detector's.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from services.runtime.decoder import Decoder, DecoderSpec, PreparedImage
from services.runtime.decoder_service import DecoderService
from services.runtime.metrics import WorkerMetrics
from services.runtime.weights import load_weights, read_config, save_weights
from services.runtime.worker import decoder_settings, run_worker
from superlink.configuration import Section
from superlink.profile import BatchLimits, MllmSettings, Profile, WorkerSettings
from superlink.v1 import decoder_pb2, types_pb2

WIDTH = 8
ROUTE = "[DET]"
ADAPTER_VERSION = "7"
MAX_GROUPS = 5


class SmallConfig(Section):
    width: int = WIDTH
    # How long one forward pass takes besides its arithmetic.
    delay_s: float = 0.0


@dataclass(frozen=True)
class SmallResult:
    # [groups]
    scores: list[float]


class SmallDecoder(Decoder[Tensor, None, None, SmallResult]):
    """Scores a group by the inner product of its link with the image's mean colour, which any batch must not change."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = DecoderSpec("small", "1", (ROUTE, "[SEG]"), config.width, 4, ADAPTER_VERSION, MAX_GROUPS, 0.25)
        self.colours = nn.Linear(3, config.width)
        self.encoded_images = 0

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        height, width = image.shape[:2]
        return PreparedImage(torch.from_numpy(image).permute(2, 0, 1).float() / 255, (height, width))

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        self.encoded_images += pixels.shape[0]
        return (self.colours(pixels.mean(dim=(2, 3)))[:, :, None, None],)

    def forward(self, features: tuple[Tensor, ...], links: Tensor, link_mask: Tensor) -> Tensor:
        time.sleep(self.config.delay_s)
        return (links @ features[0].flatten(1)[:, :, None]).squeeze(-1).masked_fill(~link_mask, -30.0)

    def loss(self, outputs: Tensor, targets: None) -> dict[str, Tensor]:
        return {"size": outputs.square().mean()}

    def decode(
        self,
        outputs: Tensor,
        sizes: Sequence[tuple[int, int]],
        group_counts: Sequence[int],
        options: Sequence[None],
    ) -> list[SmallResult]:
        return [SmallResult(row[:groups].tolist()) for row, groups in zip(outputs, group_counts, strict=True)]


class SmallDecoderService(DecoderService[None, SmallResult]):
    def load(self, folder: Path) -> SmallDecoder:
        decoder = SmallDecoder(read_config(folder, SmallConfig))
        load_weights(decoder, folder)
        self.decoder = decoder
        return decoder

    def read_options(self, request: decoder_pb2.DecodeRequest | None) -> None:
        return None

    def write_result(self, result: SmallResult, size: tuple[int, int]) -> decoder_pb2.DecodeEvent:
        presence = [
            types_pb2.Presence(group=group, found=score > 0, score=score) for group, score in enumerate(result.scores)
        ]
        return decoder_pb2.DecodeEvent(
            detections=types_pb2.Detections(presence=presence, image_height=size[0], image_width=size[1])
        )


def save_small_decoder(folder: Path, delay_s: float = 0.0) -> None:
    torch.manual_seed(0)
    config = SmallConfig(delay_s=delay_s)
    save_weights(SmallDecoder(config), folder, config)


def make_profile(
    weights: Path, *, address: str = "127.0.0.1:0", batch: BatchLimits | None = None, feature_cache_entries: int = 64
) -> Profile:
    settings = WorkerSettings(
        address=address,
        weights=weights,
        threads=1,
        batch=batch or BatchLimits(),
        feature_cache_entries=feature_cache_entries,
    )
    return Profile(name="test", mllm=MllmSettings(address=address, weights=weights), decoders={"small": settings})


def png(colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG file of one colour; ``size`` is width and height."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def link_group(seed: int = 0, width: int = WIDTH, route: str = ROUTE) -> types_pb2.LinkGroup:
    values = np.random.default_rng(seed).standard_normal(width).astype("<f4")
    tensor = types_pb2.Tensor(data=values.tobytes(), dtype="float32", shape=[width])
    return types_pb2.LinkGroup(route=route, phrase="thing", embedding=tensor)


def decode_request(encoded: bytes | None = None, groups: int = 2, **fields: object) -> decoder_pb2.DecodeRequest:
    return decoder_pb2.DecodeRequest(
        image=types_pb2.Image(encoded=png() if encoded is None else encoded),
        groups=[link_group(seed) for seed in range(groups)],
        adapter_version=ADAPTER_VERSION,
        **fields,
    )


def make_worker(profile: Profile, metrics: WorkerMetrics) -> SmallDecoderService:
    return SmallDecoderService(profile, decoder_settings(profile, "small"), metrics)


def run_small_worker(arguments: Sequence[str] | None = None) -> int:
    return run_worker(
        "small", make_worker, lambda profile: decoder_settings(profile, "small"), "decoders.small", arguments
    )


if __name__ == "__main__":
    sys.exit(run_small_worker())
