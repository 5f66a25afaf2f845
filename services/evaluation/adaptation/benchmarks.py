"""The benchmarks by name, and files of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from services.evaluation.adaptation.bddx import BddxAnswer, judge_bddx
from services.evaluation.adaptation.drivelm import DrivelmAnswer, judge_drivelm
from services.evaluation.adaptation.medical import ChoiceAnswer, judge_choices
from services.evaluation.adaptation.remote_sensing import RsvgAnswer, RsvqaAnswer, judge_rsvg, judge_rsvqa


class PredictionsError(ValueError):
    """A file of predictions is missing or wrong. The text names the file, the line and the key."""


@dataclass(frozen=True)
class Benchmark:
    """How predictions of one benchmark are written, and how they are judged."""

    line: type[BaseModel]
    judge: Callable[[Sequence[Any]], Any]


BENCHMARKS: dict[str, Benchmark] = {
    "drivelm": Benchmark(DrivelmAnswer, judge_drivelm),
    "bdd-x": Benchmark(BddxAnswer, judge_bddx),
    "rsvqa": Benchmark(RsvqaAnswer, judge_rsvqa),
    "dior-rsvg": Benchmark(RsvgAnswer, judge_rsvg),
    "gmai": Benchmark(ChoiceAnswer, judge_choices),
}


def judge_file(name: str, file: Path) -> Any:
    """The figures (a dataclass) of a JSONL file of predictions. Raises PredictionsError."""
    benchmark = BENCHMARKS[name]
    try:
        answers = read_predictions(file, benchmark.line)
        return benchmark.judge(answers)
    except PredictionsError:
        raise
    except ValueError as error:
        raise PredictionsError(f"{file}: {error}") from error


def read_predictions(file: Path, line: type[BaseModel]) -> list[BaseModel]:
    """Every line of ``file`` as ``line``; empty ones are left out. Raises PredictionsError."""
    answers = []
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for text in lines:
                number += 1
                if text.strip():
                    answers.append(line.model_validate_json(text))
    except OSError as error:
        raise PredictionsError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise PredictionsError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}).") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise PredictionsError(f"{file}, line {number}: {f'{key}: ' if key else ''}{problem['msg']}.") from error
    return answers
