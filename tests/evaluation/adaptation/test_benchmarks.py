"""The judges of adapted models: formulas reproduce published rows, and answers are read as the benchmarks do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.evaluation.adaptation.bddx import BddxAnswer, judge_bddx
from services.evaluation.adaptation.drivelm import DrivelmAnswer, final_score, judge_drivelm, match_places
from services.evaluation.adaptation.medical import ChoiceAnswer, judge_choices, told_letters
from services.evaluation.adaptation.remote_sensing import (
    RsvgAnswer,
    RsvqaAnswer,
    average_accuracy,
    inclusive_iou,
    judge_rsvg,
    judge_rsvqa,
)
from services.evaluation.adaptation.text_overlap import split_words, text_overlap
from services.evaluation.commands import evaluate

pytestmark = pytest.mark.internvl

# Table 4 of Mini-InternVL: accuracy, ChatGPT, BLEU-1 to BLEU-4, ROUGE-L, CIDEr, match, final score.
DRIVELM_ROWS = {
    "InternVL4Drive-v2": (0.7339, 65.25, (0.7787, 0.7176, 0.6608, 0.6059), 0.7449, 0.2061, 47.65, 0.6002),
    "Mini-InternVL-4B": (0.0, 54.45, (0.2405, 0.0801, 0.0252, 0.0084), 0.1927, 0.0018, 34.30, 0.3051),
    "InternVL2-76B": (0.0, 52.50, (0.2100, 0.0884, 0.0249, 0.0078), 0.1848, 0.0001, 34.22, 0.2963),
    "DA-1B": (0.7007, 63.84, (0.7362, 0.6767, 0.6214, 0.5678), 0.7365, 0.1669, 39.76, 0.5686),
    "DA-2B": (0.7628, 65.23, (0.7616, 0.7012, 0.6452, 0.5908), 0.7447, 0.1914, 43.24, 0.5958),
    "DA-4B": (0.7296, 63.97, (0.7642, 0.7032, 0.6463, 0.5914), 0.7427, 0.1976, 42.16, 0.5821),
}
# Table 11, RSVQA-LR: rural or urban, presence, comparison, average.
RSVQA_LR_ROWS = {
    "DA-1B": (95.00, 81.39, 91.60, 87.37),
    "DA-2B": (93.00, 87.07, 91.85, 89.87),
    "DA-4B": (92.00, 85.69, 92.18, 89.46),
    "Mini-InternVL-4B": (66.00, 64.64, 73.26, 69.55),
    "InternVL2-76B": (61.00, 66.29, 79.61, 73.77),
}
# What pycocoevalcap 1.2, the COCO caption evaluation in Python, yields for the words of the test that names them.
REFERENCE_BLEU = (0.6395982117, 0.5690866797, 0.4947412331, 0.4706179386)
REFERENCE_ROUGE_L = 0.6277653736
REFERENCE_CIDER = 4.4283502502
# Questions of the test split by type.
RSVQA_LR_COUNTS = {"rural_urban": 100, "presence": 2955, "comp": 4002}


@pytest.mark.parametrize("method", DRIVELM_ROWS)
def test_the_final_score_of_every_published_row(method: str) -> None:
    accuracy, chatgpt, bleu, rouge_l, cider, match, final = DRIVELM_ROWS[method]
    assert final_score(accuracy, chatgpt, bleu, rouge_l, cider, match) == pytest.approx(final, abs=1.01e-4)


@pytest.mark.parametrize("method", RSVQA_LR_ROWS)
def test_the_average_of_every_published_row(method: str) -> None:
    *by_type, average = RSVQA_LR_ROWS[method]
    accuracies = dict(zip(RSVQA_LR_COUNTS, by_type, strict=True))
    assert average_accuracy(accuracies, RSVQA_LR_COUNTS) == pytest.approx(average, abs=0.011)


def test_the_reference_implementations_figures() -> None:
    pairs = [
        ("the car moves forward slowly", "the car is moving forward slowly because the road is clear"),
        ("the car stops because the light is red", "the car stops because the light is red"),
        ("it turns left at the light", "the car turns left"),
    ]
    overlap = text_overlap(pairs)
    assert overlap.bleu == pytest.approx(REFERENCE_BLEU, abs=1e-6)
    assert overlap.rouge_l == pytest.approx(REFERENCE_ROUGE_L, abs=1e-6)
    assert overlap.cider == pytest.approx(REFERENCE_CIDER, abs=1e-6)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert split_words("It's a T-shirt; isn't it? 3.5 m.") == [
        "it",
        "'s",
        "a",
        "t-shirt",
        "is",
        "n't",
        "it",
        "3.5",
        "m",
    ]
    assert text_overlap([("A dog, running!", "a dog running")]).bleu[2] == pytest.approx(1)


def test_nothing_said_scores_nothing() -> None:
    overlap = text_overlap([("", "the car stops"), ("the car turns", "the car turns")])
    assert 0 < overlap.rouge_l <= 0.5
    with pytest.raises(ValueError, match="nothing to judge"):
        text_overlap([])


def answer(**fields: Any) -> DrivelmAnswer:
    return DrivelmAnswer(
        **({"frame": "f", "question": "What?", "answer": "yes", "prediction": "yes", "tag": [0]} | fields)
    )


def test_places_match_once_and_within_sixteen_pixels() -> None:
    truth = "<c1,CAM_FRONT,100.0,100.0> and <c2,CAM_BACK,500.0,500.0>"
    assert match_places("<c1,CAM_FRONT,107.9,108.0>", truth) == ([(100.0, 100.0)], 1)
    assert match_places("<c1,CAM_FRONT,108.0,108.0>", truth) == ([], 1)
    # Said twice, found once; a number without its partner is left out.
    assert match_places("100.0 100.0 100.0 100.0 7.5", truth) == ([(100.0, 100.0)], 2)


def test_questions_about_objects_that_were_not_found_do_not_count() -> None:
    first = answer(
        answer="<c1,CAM_FRONT,100.0,100.0>, <c2,CAM_BACK,500.0,500.0>", prediction="<c1,CAM_FRONT,101.0,101.0>"
    )
    seen = answer(question="Where is <c1,CAM_FRONT,100.0,100.0>?")
    unseen = answer(question="Where is <c2,CAM_BACK,500.0,500.0>?", prediction="no")
    other_frame = answer(frame="g", prediction="no")
    figures = judge_drivelm([first, seen, unseen, answer(), other_frame])
    assert figures.answers == 4
    assert figures.accuracy == pytest.approx(2 / 4)


def test_the_columns_of_the_leaderboard_and_its_final_score() -> None:
    places = answer(tag=[3], answer="100.0 100.0 500.0 500.0", prediction="100.0 100.0", chatgpt=80)
    said = answer(tag=[1, 2], answer="the car stops here now", prediction="the car stops here now", chatgpt=60)
    figures = judge_drivelm([places, answer(), said])
    assert (figures.accuracy, figures.chatgpt, figures.rouge_l) == (1.0, 60.0, 1.0)
    # One of two places: F1 is 2/3.
    assert figures.match == pytest.approx((200 / 3 + 80) / 2)
    assert figures.bleu is not None
    assert figures.cider is not None
    assert figures.final == pytest.approx(final_score(1.0, 60.0, figures.bleu, 1.0, figures.cider, (200 / 3 + 80) / 2))


def test_without_the_judges_opinion_there_is_no_final_score() -> None:
    figures = judge_drivelm([answer(), answer(tag=[1], chatgpt=50), answer(tag=[1, 2]), answer(tag=[3])])
    assert figures.accuracy == 1.0
    assert (figures.chatgpt, figures.match, figures.final) == (None, None, None)


def clip(predicted: str, control: tuple[float, float] | None = (5.0, -1.0)) -> BddxAnswer:
    return BddxAnswer(
        action="the car stops at the light",
        justification="because it is red",
        predicted_action="the car stops at the light",
        predicted_justification="since it is late",
        control=control,
        predicted_control=predicted,
    )


def test_bddx_words_and_control() -> None:
    clips = [clip("Speed: 5.05, turning angle: -1.40"), clip("Speed: 8, turning angle: -1"), clip("It brakes.")]
    figures = judge_bddx([*clips, clip("", control=None)])
    assert figures.description.bleu_4 == pytest.approx(100)
    assert figures.description.rouge_l == pytest.approx(100)
    assert figures.justification.bleu_4 < 1
    assert figures.justification.rouge_l < figures.full_text.rouge_l < figures.description.rouge_l
    assert figures.unreadable_controls == 1
    assert figures.speed is not None
    assert figures.speed.rmse == pytest.approx(math.sqrt((0.05**2 + 9) / 2))
    assert figures.speed.within == pytest.approx((100 / 3, 100 / 3, 100 / 3, 200 / 3))
    assert figures.turning_angle is not None
    assert figures.turning_angle.within == pytest.approx((100 / 3, 200 / 3, 200 / 3, 200 / 3))


def test_clips_without_signals_have_no_control() -> None:
    figures = judge_bddx([clip("", control=None)])
    assert (figures.speed, figures.turning_angle, figures.unreadable_controls) == (None, None, 0)


def test_rsvqa_compares_up_to_the_first_comma_and_leaves_numbers_out() -> None:
    said = [
        ("presence", "yes", "Yes, there is."),
        ("presence", "yes", "no"),
        ("presence", "no", "No"),
        ("comp", "yes", "yes."),
        ("rural_urban", "rural", "Rural"),
        ("count", "7", "7"),
        ("area", "0m2", "0m2"),
    ]
    figures = judge_rsvqa([RsvqaAnswer(type=kind, answer=true, prediction=told) for kind, true, told in said])
    assert figures.answers == 5
    assert figures.by_type == pytest.approx({"presence": 200 / 3, "comp": 0, "rural_urban": 100})
    assert figures.average == pytest.approx(60)
    assert figures.mean_of_types == pytest.approx(500 / 9)


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        # Ten and five pixels wide, with the right and bottom ones.
        ((0, 0, 9, 9), (0, 0, 4, 9), 0.5),
        ((0, 0, 9, 9), (9, 9, 18, 18), 1 / 199),
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
    ],
)
def test_boxes_include_their_last_pixels(first: Any, second: Any, iou: float) -> None:
    assert inclusive_iou(first, second) == pytest.approx(iou)


def test_an_overlap_of_exactly_a_half_is_not_enough() -> None:
    def located(prediction: str) -> RsvgAnswer:
        return RsvgAnswer(box=(0, 0, 9, 9), width=1000, height=1000, prediction=prediction)

    answers = [
        located("<ref>the dam</ref><box>[[0, 0, 9, 9]]</box>"),
        located("<box>[[0, 0, 4, 9]]</box>"),
        # The first box counts; shares of the sides are understood, too.
        located("It is at <box>[[0, 0, 0.009, 0.009], [0.5, 0.5, 0.6, 0.6]]</box>."),
        located("There is none."),
    ]
    figures = judge_rsvg(answers)
    assert (figures.answers, figures.accuracy, figures.without_box) == (4, 50.0, 1)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("B", ["B"]),
        (" C. ", ["C"]),
        ("(B) Lung", ["B"]),
        ("B. Lung", ["B"]),
        ("B: Lung", ["B"]),
        ("The answer is C.", ["C"]),
        ("Answer: d", ["D"]),
        ("A, C and D", ["A", "C", "D"]),
        ("ACD", ["A", "C", "D"]),
        ("A, C", ["A", "C"]),
        ("A nodule in the lung.", []),
        ("A nodule, answer: B", ["B"]),
        ("lung", []),
        ("", []),
    ],
)
def test_letters_are_found_in_free_text(text: str, letters: list[str]) -> None:
    assert told_letters(text) == letters


def test_choices_by_kind_and_several_letters() -> None:
    one = [("2D Cls", "B", "B. Lung"), ("2D Cls", "B", "A"), ("Seg M", "C", "none of them"), ("Seg M", "C", "C")]
    answers = [ChoiceAnswer(kind=kind, answer=true, prediction=told) for kind, true, told in one]
    several = [("ABC", "A"), ("AB", "A, D")]
    answers += [ChoiceAnswer(kind="Mcls", answer=true, prediction=told, several=True) for true, told in several]
    figures = judge_choices(answers)
    assert figures.by_kind == {"2D Cls": 50.0, "Seg M": 50.0}
    assert figures.several is not None
    assert (figures.several.accuracy, figures.several.recall) == pytest.approx((200 / 3, 40))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate, ["domain", *map(str, arguments)], terminal_width=200)


def write(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_the_command_prints_figures_and_writes_them(tmp_path: Path) -> None:
    line = {"type": "presence", "answer": "yes", "prediction": "Yes"}
    file = write(tmp_path / "answers.jsonl", line, line | {"prediction": "no"})
    result = run("rsvqa", file, "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    assert "by_type.presence" in result.output
    assert json.loads((tmp_path / "figures.json").read_text()) == {
        "answers": 2,
        "by_type": {"presence": 50.0},
        "average": 50.0,
        "mean_of_types": 50.0,
    }


@pytest.mark.parametrize(
    ("benchmark", "line"),
    [
        ("drivelm", {"frame": "f", "question": "?", "answer": "a", "prediction": "a", "tag": [0]}),
        ("bdd-x", clip("Speed: 5, turning angle: -1").model_dump()),
        ("dior-rsvg", {"box": [0, 0, 9, 9], "width": 10, "height": 10, "prediction": "<box>[[0, 0, 900, 900]]</box>"}),
        ("gmai", {"kind": "2D Cls", "answer": "B", "prediction": "B"}),
    ],
)
def test_every_benchmark_reads_its_file(tmp_path: Path, benchmark: str, line: dict[str, Any]) -> None:
    result = run(benchmark, write(tmp_path / "answers.jsonl", line))
    assert result.exit_code == 0, result.output
    assert "answers" in result.output


@pytest.mark.parametrize(
    ("benchmark", "lines", "exit_code", "message"),
    [
        ("rsvqua", [], 2, "There are: drivelm, bdd-x"),
        ("rsvqa", [{"type": "presence"}], 1, "line 1: answer: Field required"),
        ("rsvqa", [], 1, "nothing to judge"),
        (
            "gmai",
            [{"kind": "x", "answer": "B", "prediction": "B"}, {"kind": "x", "answer": "b", "prediction": "B"}],
            1,
            "line 2: answer",
        ),
    ],
)
def test_wrong_calls_and_files_say_why(
    tmp_path: Path, benchmark: str, lines: list[dict[str, Any]], exit_code: int, message: str
) -> None:
    result = run(benchmark, write(tmp_path / "answers.jsonl", *lines))
    assert result.exit_code == exit_code
    assert message in result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = run("gmai", tmp_path / "none.jsonl")
    assert result.exit_code == 1
    assert "none.jsonl: cannot be read" in result.output


def test_the_help_teaches_with_an_example() -> None:
    assert "Example: superlink eval domain" in " ".join(run("--help").output.split())
