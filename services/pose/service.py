"""The pose worker: ``python -m services.pose.service --profile tiny``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

from services.grounding.service import GroundingService
from services.grounding.structures import GroundingResult
from services.pose.model import PoseEstimator
from services.runtime.metrics import WorkerMetrics
from services.runtime.worker import decoder_settings, run_worker
from superlink.profile import Profile
from superlink.serving import Context
from superlink.v1 import decoder_pb2, types_pb2

NAME = "pose"


class PoseService(GroundingService):
    """Things and their keypoints for link embeddings."""

    def load(self, folder: Path) -> PoseEstimator:
        """The pose estimator in ``folder``. Raises WeightsError."""
        return PoseEstimator.load(folder)

    async def Decode(  # noqa: N802 - the contract's name
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecodeEvent]:
        """As of every decoder; keypoints are called what the request's groups call them."""
        names = [group.phrase for group in request.groups if group.route == self._decoder.spec.keypoint_route]
        async for event in super().Decode(request, context):
            for detection in event.detections.detections:
                for keypoint, name in zip(detection.keypoints.keypoints, names, strict=True):
                    keypoint.name = name
            yield event

    def write_result(self, result: GroundingResult, size: tuple[int, int]) -> decoder_pb2.DecodeEvent:
        """``result`` as Detections with keypoints, unnamed as yet."""
        event = super().write_result(result, size)
        if result.keypoints is not None:
            for detection, keypoints in zip(event.detections.detections, result.keypoints.tolist(), strict=True):
                detection.keypoints.keypoints.extend(
                    types_pb2.Keypoint(x=x, y=y, score=score) for x, y, score in keypoints
                )
        return event


def make_worker(profile: Profile, metrics: WorkerMetrics) -> PoseService:
    """The worker of the profile's decoder "pose"."""
    return PoseService(profile, decoder_settings(profile, NAME), metrics)


def main() -> int:
    """Run the worker; see ``services.runtime.worker`` for its life and exit codes."""
    return run_worker(NAME, make_worker, lambda profile: decoder_settings(profile, NAME), f"decoders.{NAME}")


if __name__ == "__main__":
    sys.exit(main())
