"""Whether an answer to a conversation row is right: the same words, and boxes in the same places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from services.evaluation.adaptation.answering import Answered
from services.mllm.grounding_text import Corners, Grounded, parse_grounded

# Of a box that is right, as in the tables of RefCOCO.
_LEAST_IOU = 0.5


def is_right(answered: Answered) -> bool:
    """Whether the prediction says what the answer says.

    Text must be equal but for capitals, white space and a full stop at its end. Where the answer grounds phrases, the
    prediction must ground as many, of the same words, with as many boxes each, and each box needs an IoU of 0.5 with
    one of its own; words around them do not count.
    """
    wanted = [span.grounded for span in parse_grounded(answered.answer)]
    if not wanted:
        return _plain(answered.prediction) == _plain(answered.answer)
    given = [span.grounded for span in parse_grounded(answered.prediction)]
    return len(given) == len(wanted) and all(map(_same, given, wanted))


def accuracy(answered: Iterable[Answered]) -> dict[str, float]:
    """The share of right answers by data set."""
    right: dict[str, list[bool]] = defaultdict(list)
    for each in answered:
        right[each.set].append(is_right(each))
    return {name: sum(results) / len(results) for name, results in right.items()}


def _same(given: Grounded, wanted: Grounded) -> bool:
    if _plain(given.phrase) != _plain(wanted.phrase) or len(given.boxes) != len(wanted.boxes):
        return False
    left = list(given.boxes)
    for box in wanted.boxes:
        best = max(left, key=lambda other: iou(other, box))
        if iou(best, box) < _LEAST_IOU:
            return False
        left.remove(best)
    return True


def iou(first: Corners, second: Corners) -> float:
    """Intersection over union of two boxes; 0 where neither has an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = _area(first) + _area(second) - overlap
    return overlap / union if union > 0 else 0.0


def _area(box: Corners) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")
