"""BLEU, ROUGE-L and CIDEr as image captions are judged by them (the COCO caption evaluation's definitions).

Words are cut in Python; the published figures used a Java tokenizer by the Penn Treebank's rules, of which the parts
that matter here are followed: lower case, contractions apart, punctuation left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ORDERS = 4
# Of ROUGE-L: recall counts more than precision.
_BETA = 1.2
# Of CIDEr: how fast a difference in length takes a score away.
_SIGMA = 6.0
# As the reference implementation has them, so that an order without a match yields nearly 0 and not an error.
_TINY, _SMALL = 1e-15, 1e-9

_WORD = re.compile(r"n't|'[a-z]+|[^\W_]+(?:[._/-][^\W_]+)*")
_CONTRACTION = re.compile(r"(\w)(n't|'(?:s|re|ve|ll|d|m))\b")

NGram = tuple[str, ...]


@dataclass(frozen=True)
class TextOverlap:
    """How far predictions agree with their truths; all from 0 to 1 but CIDEr, which reaches 10."""

    # BLEU-1 to BLEU-4.
    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float


def text_overlap(pairs: Sequence[tuple[str, str]]) -> TextOverlap:
    """Judge pairs of a prediction and its truth together. Raises ValueError when there are none."""
    if not pairs:
        raise ValueError("There is nothing to judge.")
    words = [(split_words(prediction), split_words(truth)) for prediction, truth in pairs]
    return TextOverlap(_bleu(words), sum(_rouge_l(*pair) for pair in words) / len(words), _cider(words))


def split_words(text: str) -> list[str]:
    """Words in lower case, without punctuation: "It's a dog." is it, 's, a, dog."""
    return _WORD.findall(_CONTRACTION.sub(r"\1 \2", text.lower()))


WordPairs = Sequence[tuple[list[str], list[str]]]


def _bleu(pairs: WordPairs) -> tuple[float, float, float, float]:
    matches, guesses = [0] * _ORDERS, [0] * _ORDERS
    for prediction, truth in pairs:
        for order in range(_ORDERS):
            said, meant = _ngrams(prediction, order + 1), _ngrams(truth, order + 1)
            matches[order] += (said & meant).total()
            guesses[order] += said.total()
    said_words, meant_words = sum(len(said) for said, _ in pairs), sum(len(meant) for _, meant in pairs)
    ratio = (said_words + _TINY) / (meant_words + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(_ORDERS):
        product *= (matches[order] + _TINY) / (guesses[order] + _SMALL)
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores[0], scores[1], scores[2], scores[3]


def _rouge_l(prediction: list[str], truth: list[str]) -> float:
    common = _longest_common(prediction, truth)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(truth)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
        before = row
    return before[-1]


def _cider(pairs: WordPairs) -> float:
    documents: Counter[NGram] = Counter()
    for _, truth in pairs:
        documents.update({ngram for order in range(_ORDERS) for ngram in _ngrams(truth, order + 1)})
    total = 0.0
    for prediction, truth in pairs:
        # Counted in pairs of words, as the reference implementation does.
        difference = max(0, len(prediction) - 1) - max(0, len(truth) - 1)
        penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
        for order in range(_ORDERS):
            said = _weighted(_ngrams(prediction, order + 1), documents, len(pairs))
            meant = _weighted(_ngrams(truth, order + 1), documents, len(pairs))
            norms = math.hypot(*said.values()) * math.hypot(*meant.values())
            if norms:
                overlap = sum(
                    min(value, meant.get(ngram, 0.0)) * meant.get(ngram, 0.0) for ngram, value in said.items()
                )
                total += penalty * overlap / norms
    return 10 * total / _ORDERS / len(pairs)


def _weighted(counts: Counter[NGram], documents: Counter[NGram], number: int) -> dict[NGram, float]:
    """Counts times the logarithm of how rare an n-gram is among ``number`` truths."""
    return {ngram: count * (math.log(number) - math.log(max(1, documents[ngram]))) for ngram, count in counts.items()}


def _ngrams(words: list[str], order: int) -> Counter[NGram]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
