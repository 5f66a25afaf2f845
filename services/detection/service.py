"""The detection worker: ``python -m services.detection.service --profile tiny``."""

from __future__ import annotations

import sys
from pathlib import Path

from services.detection.model import Detector
from services.grounding.service import GroundingService
from services.runtime.metrics import WorkerMetrics
from services.runtime.worker import decoder_settings, run_worker
from superlink.profile import Profile

NAME = "detection"


class DetectionService(GroundingService):
    """Boxes for link embeddings."""

    def load(self, folder: Path) -> Detector:
        """The detector in ``folder``. Raises WeightsError."""
        return Detector.load(folder)


def make_worker(profile: Profile, metrics: WorkerMetrics) -> DetectionService:
    """The worker of the profile's decoder "detection"."""
    return DetectionService(profile, decoder_settings(profile, NAME), metrics)


def main() -> int:
    """Run the worker; see ``services.runtime.worker`` for its life and exit codes."""
    return run_worker(NAME, make_worker, lambda profile: decoder_settings(profile, NAME), f"decoders.{NAME}")


if __name__ == "__main__":
    sys.exit(main())
