"""BDD-X: what a car does and why, in words, and its next speed and turning angle."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from services.evaluation.adaptation.text_overlap import text_overlap

# m/s and degrees alike.
THRESHOLDS = (0.1, 0.5, 1.0, 5.0)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class BddxAnswer(BaseModel):
    """Answers about one clip. Data without the car's signals have no control."""

    model_config = ConfigDict(frozen=True)

    action: str
    justification: str
    predicted_action: str
    predicted_justification: str
    # Speed in m/s and turning angle in degrees.
    control: tuple[float, float] | None = None
    # As the model wrote it: "Speed: 5.07, turning angle: 0.25".
    predicted_control: str = ""


@dataclass(frozen=True)
class Words:
    """In per cent, as printed; CIDEr can be above 100."""

    cider: float
    bleu_4: float
    rouge_l: float


@dataclass(frozen=True)
class Control:
    """How far predictions of one number are off."""

    rmse: float
    # Per cent of the clips within each of ``THRESHOLDS``.
    within: tuple[float, float, float, float]


@dataclass(frozen=True)
class BddxFigures:
    """The columns of the published tables."""

    answers: int
    description: Words
    justification: Words
    full_text: Words
    speed: Control | None
    turning_angle: Control | None
    # Clips whose predicted control was no two numbers. They miss every threshold and are left out of the RMSE.
    unreadable_controls: int


def judge_bddx(answers: Sequence[BddxAnswer]) -> BddxFigures:
    """Judge all clips together. Raises ValueError when there are none."""
    controls = [
        (_read_control(answer.predicted_control), answer.control) for answer in answers if answer.control is not None
    ]
    return BddxFigures(
        answers=len(answers),
        description=_words([(answer.predicted_action, answer.action) for answer in answers]),
        justification=_words([(answer.predicted_justification, answer.justification) for answer in answers]),
        full_text=_words(
            [
                (
                    f"{answer.predicted_action} {answer.predicted_justification}",
                    f"{answer.action} {answer.justification}",
                )
                for answer in answers
            ]
        ),
        speed=_control([(told and told[0], true[0]) for told, true in controls]),
        turning_angle=_control([(told and told[1], true[1]) for told, true in controls]),
        unreadable_controls=sum(told is None for told, _ in controls),
    )


def _words(pairs: Sequence[tuple[str, str]]) -> Words:
    overlap = text_overlap(pairs)
    return Words(100 * overlap.cider, 100 * overlap.bleu[3], 100 * overlap.rouge_l)


def _read_control(text: str) -> tuple[float, float] | None:
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _control(pairs: Sequence[tuple[float | None, float]]) -> Control | None:
    errors = [abs(told - true) for told, true in pairs if told is not None]
    if not errors:
        return None
    shares = [100 * sum(error < threshold for error in errors) / len(pairs) for threshold in THRESHOLDS]
    rmse = math.sqrt(sum(error**2 for error in errors) / len(errors))
    return Control(rmse, (shares[0], shares[1], shares[2], shares[3]))
