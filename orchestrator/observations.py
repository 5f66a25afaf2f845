"""Observations: what the tools found, in the form in which the model reads it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.tool_calls import ToolOutcome
from superlink.v1 import mllm_pb2, types_pb2


def observe(outcomes: Sequence[ToolOutcome]) -> mllm_pb2.Observation:
    """The outcomes of a round, one entry a group in the order in which the model wrote them.

    Images that were made are for the user to look at, and names of keypoints are no things to count: their groups have
    no entry.

    A client may ask for detections below the decoder's own threshold: it wants to see them, but the model must not
    count them.
    """
    groups: list[mllm_pb2.ObservedGroup] = []
    for outcome in outcomes:
        if outcome.images is not None:
            continue
        threshold = outcome.call.route.score_threshold if outcome.call.route is not None else 0.0
        for index, group in enumerate(outcome.call.groups):
            if outcome.call.names_keypoint(group):
                continue
            observed = mllm_pb2.ObservedGroup(route=group.route, phrase=group.phrase)
            if outcome.detections is None:
                observed.failed = True
            else:
                observed.objects.extend(_objects(outcome.detections, index, threshold))
            groups.append(observed)
    return mllm_pb2.Observation(groups=groups)


def _objects(detections: types_pb2.Detections, group: int, threshold: float) -> list[mllm_pb2.ObservedObject]:
    if any(presence.group == group and not presence.found for presence in detections.presence):
        return []
    present = [entry for entry in detections.detections if entry.group == group and entry.score >= threshold]
    present.sort(key=lambda entry: entry.score, reverse=True)
    width, height = detections.image_width, detections.image_height
    return [
        mllm_pb2.ObservedObject(
            x1=thousandths(entry.box.x1, width),
            y1=thousandths(entry.box.y1, height),
            x2=thousandths(entry.box.x2, width),
            y2=thousandths(entry.box.y2, height),
            score=entry.score,
        )
        for entry in present
    ]


def thousandths(coordinate: float, side: int) -> int:
    """A pixel coordinate as thousandths of ``side``, clipped to 0..1000."""
    return min(1000, max(0, round(coordinate / max(1, side) * 1000)))
