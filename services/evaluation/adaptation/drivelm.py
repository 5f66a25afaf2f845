"""DriveLM's score on nuScenes: exact answers, a judge's opinion, overlap of words, and places that match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.evaluation.adaptation.text_overlap import TextOverlap, text_overlap
from services.trainer.adaptation.multi_view import c_tags_to_camera

# Pixels of a camera, both axes added up, within which two places are the same.
_SAME_PLACE = 16.0
_PLACE_NUMBER = re.compile(r"\d+\.\d+")
_EXACT, _JUDGED, _LANGUAGE, _MATCH = 0, 1, 2, 3

Point = tuple[float, float]


# Models write places in thousandths of the picture of all cameras; the score takes pixels of each.
CameraText = Annotated[str, AfterValidator(c_tags_to_camera)]


class DrivelmAnswer(BaseModel):
    """One answer about a key frame; places in all texts are pixels of cameras, or thousandths, which are rewritten."""

    model_config = ConfigDict(frozen=True)

    frame: str
    question: CameraText
    answer: CameraText
    prediction: CameraText
    # How it is judged: 0 exactly, 1 by a judge, 2 by words, 3 by places and a judge.
    tag: tuple[Literal[0, 1, 2, 3], ...]
    # What the judge, a large language model, gave the prediction, of 100.
    chatgpt: float | None = Field(default=None, ge=0, le=100)


@dataclass(frozen=True)
class DrivelmFigures:
    """The leaderboard's columns; None where no answer is judged so, or the judge has not been asked."""

    answers: int
    # 0..1.
    accuracy: float | None
    # 0..100.
    chatgpt: float | None
    bleu: tuple[float, float, float, float] | None
    rouge_l: float | None
    cider: float | None
    # 0..100: the mean of the places' F1 and of the judge's opinion.
    match: float | None
    final: float | None


def final_score(
    accuracy: float, chatgpt: float, bleu: Sequence[float], rouge_l: float, cider: float, match: float
) -> float:
    """The leaderboard's final score, 0..1, of its columns as it prints them."""
    language = (sum(bleu) / len(bleu) + rouge_l + cider / 10) / 3
    return 0.4 * chatgpt / 100 + 0.2 * accuracy + 0.2 * match / 100 + 0.2 * language


def judge_drivelm(answers: Sequence[DrivelmAnswer]) -> DrivelmFigures:
    """Judge answers in the order of the data set, frame by frame.

    The first answer of a frame names its important objects. Later questions count only where every place that they
    speak of is one that the first answer found.
    """
    counted = _counted(answers)

    def tagged(tag: int) -> list[DrivelmAnswer]:
        return [answer for answer in counted if tag in answer.tag]

    exact = [float(answer.prediction == answer.answer) for answer in tagged(_EXACT)]
    words = [(answer.prediction, answer.answer) for answer in tagged(_LANGUAGE)]
    overlap: TextOverlap | None = text_overlap(words) if words else None
    accuracy, chatgpt = _mean(exact), _judge(tagged(_JUDGED))
    places, opinion = [100 * _f1(answer) for answer in tagged(_MATCH)], _judge(tagged(_MATCH))
    match = None if opinion is None else (sum(places) / len(places) + opinion) / 2
    final = None
    if accuracy is not None and chatgpt is not None and overlap is not None and match is not None:
        final = final_score(accuracy, chatgpt, overlap.bleu, overlap.rouge_l, overlap.cider, match)
    return DrivelmFigures(
        answers=len(counted),
        accuracy=accuracy,
        chatgpt=chatgpt,
        bleu=overlap.bleu if overlap else None,
        rouge_l=overlap.rouge_l if overlap else None,
        cider=overlap.cider if overlap else None,
        match=match,
        final=final,
    )


def match_places(prediction: str, truth: str) -> tuple[list[Point], int]:
    """Places of ``truth`` that ``prediction`` finds, each once, and how many places it names."""
    left = _points(truth)
    named = _points(prediction)
    found = []
    for x, y in named:
        nearest = min(left, key=lambda point: abs(point[0] - x) + abs(point[1] - y), default=None)
        if nearest is not None and abs(nearest[0] - x) + abs(nearest[1] - y) < _SAME_PLACE:
            left.remove(nearest)
            found.append(nearest)
    return found, len(named)


def _counted(answers: Sequence[DrivelmAnswer]) -> list[DrivelmAnswer]:
    counted = []
    found: dict[str, list[Point]] = {}
    for answer in answers:
        if answer.frame not in found:
            found[answer.frame] = match_places(answer.prediction, answer.answer)[0]
            counted.append(answer)
        elif all(point in found[answer.frame] for point in _points(answer.question)):
            counted.append(answer)
    return counted


def _f1(answer: DrivelmAnswer) -> float:
    found, named = match_places(answer.prediction, answer.answer)
    everything = named + len(_points(answer.answer))
    return 2 * len(found) / everything if everything else 0.0


def _points(text: str) -> list[Point]:
    """All numbers with a decimal point, two by two; a last single one is left out."""
    numbers = [float(number) for number in _PLACE_NUMBER.findall(text)]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _judge(answers: Sequence[DrivelmAnswer]) -> float | None:
    """The judge's mean opinion; None unless it was asked about every answer."""
    opinions = [answer.chatgpt for answer in answers if answer.chatgpt is not None]
    return _mean(opinions) if len(opinions) == len(answers) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
