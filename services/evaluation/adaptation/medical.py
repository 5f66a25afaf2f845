"""Medical questions in GMAI-MMBench's style: letters of options, one or several right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

# A letter that stands alone, with or without brackets: "B", "(B)", "B. Lung", "Answer: B".
_ALONE = re.compile(r"(?:^|[\s(:,])\(?([A-Z])(?:[).:,]|\s*$|\s+and\b)")
_ANNOUNCED = re.compile(r"\b(?:answer|option)s?\s*(?:is|are)?\s*:?\s*\(?([A-Z])\b", re.IGNORECASE)
_LETTERS_ONLY = re.compile(r"[A-Z](?:[\s,;/&]*[A-Z])*\.?")


class ChoiceAnswer(BaseModel):
    """One question: what kind it is ("2D Cls", "Seg M"), the right letters, and the text that the model wrote."""

    model_config = ConfigDict(frozen=True)

    kind: str
    answer: str = Field(pattern=r"^[A-Z]+$")
    prediction: str
    # Whether several letters may be right; the published table judges these apart.
    several: bool = False


@dataclass(frozen=True)
class Labels:
    """Questions with several right letters, in per cent: how many told letters are right, and right ones told."""

    accuracy: float
    recall: float


@dataclass(frozen=True)
class ChoiceFigures:
    """Accuracy by kind in per cent, of questions with one right letter, and the figures of those with several."""

    answers: int
    by_kind: dict[str, float]
    several: Labels | None


def judge_choices(answers: Sequence[ChoiceAnswer]) -> ChoiceFigures:
    """Judge all questions. An answer without a letter is wrong. Raises ValueError when there are none.

    Letters of all questions with several are counted together. No formula is published; in the published rows accuracy
    is 2.5 to 2.7 times recall, as it must be by this count for models that tell one letter where about 2.6 are right.
    """
    if not answers:
        raise ValueError("There is nothing to judge.")
    hits: dict[str, list[bool]] = {}
    right = told = meant = 0
    for answer in answers:
        letters = told_letters(answer.prediction)
        if answer.several:
            right += len(set(letters) & set(answer.answer))
            told += len(set(letters))
            meant += len(set(answer.answer))
        else:
            hits.setdefault(answer.kind, []).append(letters[:1] == [answer.answer])
    return ChoiceFigures(
        answers=len(answers),
        by_kind={kind: 100 * sum(found) / len(found) for kind, found in hits.items()},
        several=Labels(100 * right / max(1, told), 100 * right / meant) if meant else None,
    )


def told_letters(text: str) -> list[str]:
    """Letters that an answer names, in order: "B", "(B) Lung", "A, C and D", "The answer is C."

    An article is no letter: "A nodule" names none.
    """
    text = text.strip()
    if _LETTERS_ONLY.fullmatch(text):
        return re.findall("[A-Z]", text)
    announced = _ANNOUNCED.search(text)
    found = _ALONE.findall(text)
    if announced and announced[1].upper() not in found:
        return [announced[1].upper(), *found]
    return found
