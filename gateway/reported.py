"""What tools reported in an earlier answer without the model having read it: later turns may refer to it ("dog 2")."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.chat_schema import AnswerExtension
from gateway.results import DetectionResult, ImageSize
from superlink.errors import invalid_argument
from superlink.v1 import mllm_pb2


def unread_results(answer: AnswerExtension, shown: ImageSize | None) -> mllm_pb2.Observation | None:
    """The finds of an answer that none of its observations holds, as the model reads finds; None where there are none.

    ``shown`` is the size of the last image before the answer, for clients that do not send its own back.

    Raises SuperlinkError ``invalid_conversation`` for boxes that no tool sends.
    """
    image = answer.image or shown
    if image is None:
        return None
    read = {(group.route, group.phrase) for entry in answer.observations or () for group in entry.groups}
    groups = [
        observed_group(phrase.route, phrase.phrase, phrase.detections if phrase.found else (), image)
        for call in answer.tool_calls or ()
        for phrase in call.phrases
        # Known only of tools that find things, and only once they have answered.
        if phrase.found is not None and (phrase.route, phrase.phrase) not in read
    ]
    return mllm_pb2.Observation(groups=groups) if groups else None


def observed_group(
    route: str, phrase: str, found: Sequence[DetectionResult], image: ImageSize | None
) -> mllm_pb2.ObservedGroup:
    """What was found in an image of this size for ``phrase``, best first.

    Raises SuperlinkError ``invalid_conversation`` for boxes that no tool sends.
    """
    return mllm_pb2.ObservedGroup(route=route, phrase=phrase, objects=_objects(found, image))


def _objects(found: Sequence[DetectionResult], image: ImageSize | None) -> list[mllm_pb2.ObservedObject]:
    objects = []
    for entry in sorted(found, key=lambda entry: -entry.score):
        if image is None:
            raise invalid_argument("invalid_conversation", "Boxes were reported, but no image comes before them.")
        if len(entry.bbox) != 4 or not all(math.isfinite(value) for value in entry.bbox):
            raise invalid_argument("invalid_conversation", "A box of an earlier answer is not x, y, width and height.")
        x, y, width, height = entry.bbox
        objects.append(
            mllm_pb2.ObservedObject(
                x1=_thousandths(x, image.width),
                y1=_thousandths(y, image.height),
                x2=_thousandths(x + width, image.width),
                y2=_thousandths(y + height, image.height),
                score=entry.score,
            )
        )
    return objects


def _thousandths(coordinate: float, side: int) -> int:
    return round(min(1.0, max(0.0, coordinate / max(1, side))) * 1000)
