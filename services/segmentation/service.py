"""The segmentation worker: ``python -m services.segmentation.service --profile tiny``."""

from __future__ import annotations

import sys
from pathlib import Path

from services.grounding.service import GroundingService
from services.runtime.metrics import WorkerMetrics
from services.runtime.worker import decoder_settings, run_worker
from services.segmentation.model import Segmenter
from superlink.profile import Profile

NAME = "segmentation"


class SegmentationService(GroundingService):
    """Masks for link embeddings."""

    def load(self, folder: Path) -> Segmenter:
        """The segmenter in ``folder``. Raises WeightsError."""
        return Segmenter.load(folder)


def make_worker(profile: Profile, metrics: WorkerMetrics) -> SegmentationService:
    """The worker of the profile's decoder "segmentation"."""
    return SegmentationService(profile, decoder_settings(profile, NAME), metrics)


def main() -> int:
    """Run the worker; see ``services.runtime.worker`` for its life and exit codes."""
    return run_worker(NAME, make_worker, lambda profile: decoder_settings(profile, NAME), f"decoders.{NAME}")


if __name__ == "__main__":
    sys.exit(main())
