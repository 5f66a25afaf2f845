"""RSVQA and DIOR-RSVG: short answers about aerial images, and boxes of what an expression means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, PositiveInt

from services.mllm.grounding_text import Corners, parse_grounded, pixels

# Types of questions that the published tables leave out: their answers are numbers.
LEFT_OUT = ("count", "area")


class RsvqaAnswer(BaseModel):
    """One answer. ``type`` is the question's, as the data set names it: rural_urban, presence, comp, count, area."""

    model_config = ConfigDict(frozen=True)

    type: str
    answer: str
    prediction: str


@dataclass(frozen=True)
class RsvqaFigures:
    """Accuracies in per cent. ``average`` counts every answer alike, ``mean_of_types`` every type."""

    answers: int
    by_type: dict[str, float]
    average: float
    mean_of_types: float


def judge_rsvqa(answers: Sequence[RsvqaAnswer]) -> RsvqaFigures:
    """Compare answers in lower case, predictions up to their first comma. Raises ValueError when none is judged."""
    hits: dict[str, list[bool]] = {}
    for answer in answers:
        if answer.type not in LEFT_OUT:
            told = answer.prediction.lower().split(",")[0].strip()
            hits.setdefault(answer.type, []).append(told == answer.answer.lower().strip())
    if not hits:
        raise ValueError(f"There is nothing to judge: questions of the types {' and '.join(LEFT_OUT)} are left out.")
    by_type = {kind: 100 * sum(right) / len(right) for kind, right in hits.items()}
    counts = {kind: len(right) for kind, right in hits.items()}
    return RsvqaFigures(
        answers=sum(counts.values()),
        by_type=by_type,
        average=average_accuracy(by_type, counts),
        mean_of_types=sum(by_type.values()) / len(by_type),
    )


def average_accuracy(by_type: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """The accuracy over all questions, of accuracies by type and the number of questions of each type."""
    return sum(by_type[kind] * counts[kind] for kind in by_type) / sum(counts[kind] for kind in by_type)


class RsvgAnswer(BaseModel):
    """One expression's box in pixels, the image's size, and the text that the model wrote."""

    model_config = ConfigDict(frozen=True)

    box: Corners
    width: PositiveInt
    height: PositiveInt
    prediction: str


@dataclass(frozen=True)
class RsvgFigures:
    """Per cent of the expressions whose box is right, and how many answers held no box, which count as wrong."""

    answers: int
    accuracy: float
    without_box: int


def judge_rsvg(answers: Sequence[RsvgAnswer]) -> RsvgFigures:
    """Compare the first box of every answer. Raises ValueError when there are none."""
    if not answers:
        raise ValueError("There is nothing to judge.")
    right, without = 0, 0
    for answer in answers:
        spans = parse_grounded(answer.prediction)
        if not spans:
            without += 1
            continue
        told = pixels(spans[0].grounded.boxes[0], answer.width, answer.height)
        right += inclusive_iou(told, answer.box) > 0.5
    return RsvgFigures(len(answers), 100 * right / len(answers), without)


def inclusive_iou(first: Corners, second: Corners) -> float:
    """IoU of boxes whose right and bottom pixels belong to them, as DIOR-RSVG counts."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    overlap = max(0.0, width) * max(0.0, height)
    return overlap / (_area(first) + _area(second) - overlap)


def _area(box: Corners) -> float:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
