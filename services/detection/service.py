"""The detection worker: ``python -m services.detection.service --profile tiny``."""

from __future__ import annotations

import sys
from pathlib import Path

from services.detection.model import DetectionResult, Detector, DetectorOptions
from services.runtime.decoder_service import DecoderService
from services.runtime.metrics import WorkerMetrics
from services.runtime.worker import decoder_settings, run_worker
from superlink.errors import invalid_argument
from superlink.profile import Profile
from superlink.v1 import decoder_pb2, types_pb2

NAME = "detection"
DEFAULT_MAX_DETECTIONS = 100
MAX_DETECTIONS = 1000


class DetectionService(DecoderService[DetectorOptions, DetectionResult]):
    """Boxes for link embeddings."""

    def load(self, folder: Path) -> Detector:
        """The detector in ``folder``. Raises WeightsError."""
        return Detector.load(folder)

    def read_options(self, request: decoder_pb2.DecodeRequest | None) -> DetectorOptions:
        """The request's DetectionOptions. Raises SuperlinkError (INVALID_ARGUMENT) for values out of range."""
        options = request.detection if request is not None else decoder_pb2.DetectionOptions()
        threshold = options.score_threshold if options.HasField("score_threshold") else None
        if threshold is not None and not 0 <= threshold <= 1:
            raise invalid_argument("invalid_option", f"score_threshold is {threshold:g}; it must lie in 0..1.")
        maximum = options.max_detections if options.HasField("max_detections") else DEFAULT_MAX_DETECTIONS
        if not 1 <= maximum <= MAX_DETECTIONS:
            raise invalid_argument(
                "invalid_option", f"max_detections is {maximum}; it must lie in 1..{MAX_DETECTIONS}."
            )
        return DetectorOptions(score_threshold=threshold, max_detections=maximum)

    def write_result(self, result: DetectionResult, size: tuple[int, int]) -> decoder_pb2.DecodeEvent:
        """``result`` as Detections."""
        detections = [
            types_pb2.Detection(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2), score=score, group=group)
            for (x1, y1, x2, y2), score, group in zip(
                result.boxes.tolist(), result.scores.tolist(), result.groups.tolist(), strict=True
            )
        ]
        presence = [
            types_pb2.Presence(group=group, found=found, score=score)
            for group, (found, score) in enumerate(
                zip(result.presence_found.tolist(), result.presence_scores.tolist(), strict=True)
            )
        ]
        height, width = size
        return decoder_pb2.DecodeEvent(
            detections=types_pb2.Detections(
                detections=detections, presence=presence, image_width=width, image_height=height
            )
        )


def make_worker(profile: Profile, metrics: WorkerMetrics) -> DetectionService:
    """The worker of the profile's decoder "detection"."""
    return DetectionService(profile, decoder_settings(profile, NAME), metrics)


def main() -> int:
    """Run the worker; see ``services.runtime.worker`` for its life and exit codes."""
    return run_worker(NAME, make_worker, lambda profile: decoder_settings(profile, NAME), f"decoders.{NAME}")


if __name__ == "__main__":
    sys.exit(main())
