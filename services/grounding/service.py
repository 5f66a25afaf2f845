"""The worker of a decoder that grounds phrases: what detection, segmentation and their kin share in serving."""

from __future__ import annotations

from services.grounding.structures import GroundingOptions, GroundingResult
from services.runtime.decoder_service import DecoderService
from superlink.errors import invalid_argument
from superlink.v1 import decoder_pb2, types_pb2

MOST_FINDS = 1000


class GroundingService(DecoderService[GroundingOptions, GroundingResult]):
    """Reads DetectionOptions and answers with Detections."""

    def read_options(self, request: decoder_pb2.DecodeRequest | None) -> GroundingOptions:
        """The request's DetectionOptions. Raises SuperlinkError (INVALID_ARGUMENT) for values out of range."""
        options = request.detection if request is not None else decoder_pb2.DetectionOptions()
        threshold = options.score_threshold if options.HasField("score_threshold") else None
        if threshold is not None and not 0 <= threshold <= 1:
            raise invalid_argument("invalid_option", f"score_threshold is {threshold:g}; it must lie in 0..1.")
        most = options.max_detections if options.HasField("max_detections") else GroundingOptions.most_finds
        if not 1 <= most <= MOST_FINDS:
            raise invalid_argument("invalid_option", f"max_detections is {most}; it must lie in 1..{MOST_FINDS}.")
        return GroundingOptions(score_threshold=threshold, most_finds=most, semantic=options.semantic)

    def write_result(self, result: GroundingResult, size: tuple[int, int]) -> decoder_pb2.DecodeEvent:
        """``result`` as Detections."""
        detections = [
            types_pb2.Detection(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2), score=score, group=group)
            for (x1, y1, x2, y2), score, group in zip(
                result.boxes.tolist(), result.scores.tolist(), result.groups.tolist(), strict=True
            )
        ]
        if result.masks is not None:
            for detection, mask in zip(detections, result.masks, strict=True):
                detection.mask.CopyFrom(types_pb2.Mask(height=mask.height, width=mask.width, counts=mask.counts))
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
