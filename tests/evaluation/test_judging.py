from __future__ import annotations

import pytest

from services.evaluation.judging import is_right, stated_choice, stated_number, stated_yes_or_no
from services.evaluation.scenes_set import ChoiceAnswer, CountAnswer, YesNoAnswer

PETS = {"dog": ("dog", "dogs"), "cat": ("cat", "cats"), "equal": ("equally", "the same")}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are 3 dogs.", 3),
        ("12", 12),
        ("I count three dogs.", 3),
        ("There are no dogs.", 0),
        ("有3只狗。", 3),
        ("有两只狗。", 2),
        ("一共十二只。", 12),
        ("二十三", 23),
        ("没有狗。", 0),
        ("The tool failed.", None),
        ("", None),
    ],
)
def test_numbers_are_read_in_digits_and_words(text: str, number: int | None) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, there is a dog.", True),
        ("No, there is no dog.", False),
        ("There is no dog.", False),
        ("There are 2 dogs.", True),
        ("有，有2只狗。", True),
        ("没有，图里没有狗。", False),
        ("图里没有狗。", False),
        ("是的，狗有3，猫有1。", True),
        ("不是，狗有1，猫有3。", False),
        ("Perhaps.", None),
    ],
)
def test_yes_and_no_are_read_in_both_languages(text: str, answer: bool | None) -> None:
    assert stated_yes_or_no(text) is answer


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("More dogs: 3 against 1.", "dog"),
        ("The cat is larger than the dog.", "cat"),
        ("Equally many: 2.", "equal"),
        ("I locate nothing.", None),
        ("I do not find the dog.", None),
        ("The tool failed for the dog.", None),
    ],
)
def test_the_first_named_option_is_the_choice(text: str, choice: str | None) -> None:
    assert stated_choice(text, PETS) == choice


def test_the_longer_name_wins_where_one_begins_with_the_other() -> None:
    options = {"ball": ("ball",), "ball pen": ("ball pen",)}
    assert stated_choice("The ball pen.", options) == "ball pen"
    assert stated_choice("苹果树更多。", {"苹果": ("苹果",), "苹果树": ("苹果树",)}) == "苹果树"


def test_an_answer_is_right_when_it_states_what_is_expected() -> None:
    assert is_right(CountAnswer(value=3), "There are 3 dogs.")
    assert not is_right(CountAnswer(value=3), "There are many.")
    assert is_right(YesNoAnswer(value=False), "No.")
    assert not is_right(YesNoAnswer(value=False), "I cannot say: the tool failed.".replace("cannot", "can"))
    assert is_right(ChoiceAnswer(value="dog", options=PETS), "More dogs.")
    assert not is_right(ChoiceAnswer(value="dog", options=PETS), "More cats than dogs.")
