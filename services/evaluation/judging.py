"""Reads answers in plain words: the number, the yes or no, or the choice that a text states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from services.evaluation.scenes_set import ChoiceAnswer, CountAnswer, ExpectedAnswer

_ENGLISH_NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_CHINESE_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2}
_NUMBER = re.compile(
    rf"\d+|\b(?:{'|'.join(_ENGLISH_NUMBERS)}|no|none)\b|(?!一[共样起])[零一二三四五六七八九十两]+|没有", re.IGNORECASE
)
# What begins at the same place is read by the longer form: 没有 before 有.
_YES_OR_NO = re.compile(
    r"(?P<no>\bno\b|\bnot\b|\bnone\b|没|不|否|无)|(?P<yes>\byes\b|\byeah\b|\bthere (?:is|are) (?!no)|有|是|对)",
    re.IGNORECASE,
)

_DENIAL = re.compile(r"\b(?:no|not|failed)\b|没|找不到|出错", re.IGNORECASE)


def is_right(expected: ExpectedAnswer, text: str) -> bool:
    """Whether ``text`` states the expected answer. What cannot be understood is wrong."""
    if isinstance(expected, CountAnswer):
        return stated_number(text) == expected.value
    if isinstance(expected, ChoiceAnswer):
        return stated_choice(text, expected.options) == expected.value
    return stated_yes_or_no(text) is expected.value


def stated_number(text: str) -> int | None:
    """The first number in ``text``, in digits or in English or Chinese words; None without one.

    "No dogs" and 没有 are zero.
    """
    found = _NUMBER.search(text)
    if found is None:
        return None
    word = found.group().lower()
    if word.isascii() and word.isdecimal():
        return int(word)
    if word in ("no", "none", "没有"):
        return 0
    return _ENGLISH_NUMBERS.index(word) if word in _ENGLISH_NUMBERS else _chinese_number(word)


def stated_yes_or_no(text: str) -> bool | None:
    """The first yes or no in ``text``; None without one."""
    found = _YES_OR_NO.search(text)
    return None if found is None else found.lastgroup == "yes"


def stated_choice(text: str, options: Mapping[str, Sequence[str]]) -> str | None:
    """The option that ``text`` names first, the longest wording winning at one place.

    None when it names none, or says that one is not there.
    """
    if _DENIAL.search(text):
        return None
    found = []
    for option, wordings in options.items():
        for wording in wordings:
            edge = r"\b" if wording.isascii() else ""
            place = re.search(f"{edge}{re.escape(wording)}{edge}", text, re.IGNORECASE)
            if place:
                found.append((place.start(), -len(wording), option))
    return min(found)[2] if found else None


def _chinese_number(word: str) -> int:
    """Up to 99: 十 is 10, 十二 12, 二十三 23."""
    tens, ten, units = word.partition("十")
    if not ten:
        return int("".join(str(_CHINESE_DIGITS[character]) for character in word))
    return 10 * (_CHINESE_DIGITS.get(tens, 1) if tens else 1) + (_CHINESE_DIGITS.get(units, 0) if units else 0)
