"""What stands for a referring expression in a vocabulary: its category's row, moved by what sets the thing apart.

"the leftmost dog" is the dog's row and a fixed direction that means leftmost; "the dog left of the bus" has the bus's
row beside it, rolled by half its width so that the two categories cannot be confused. The MLLM learns to say the sum,
decoders learn to be asked in it, and neither needs the other for that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.referring import choose_referring, members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.templates import ENGLISH, RELATIONS, SUPERLATIVES

_NAMES = (*SUPERLATIVES, *RELATIONS)
_SEED = 20261127
# Of the direction and of the other category, relative to rows.
_SCALE = 0.7
# Most expressions beside a conversation, the tries to find them, and how often one is taken whose category says enough.
_MOST_REFERRED, _TRIES, _ALONE = 8, 20, 0.1


@dataclass(frozen=True)
class Meaning:
    """What a referring expression says."""

    # One of SUPERLATIVES or RELATIONS.
    relation: str
    category: int
    # The category of what it is seen from; None of a superlative.
    other: int | None


@lru_cache(maxsize=65_536)
def read_referring(phrase: str) -> Meaning | None:
    """The meaning of a referring expression in English or Chinese; None of any other phrase."""
    for relation, pattern in _PATTERNS:
        match = pattern.fullmatch(phrase.lower())
        if match is None:
            continue
        words = match.groupdict()
        category, other = _CATEGORIES.get(words["one"]), _CATEGORIES.get(words.get("other") or "")
        if category is not None and (other is not None) == ("other" in words):
            return Meaning(relation, category, other)
    return None


def referring_row(rows: Tensor, meaning: Meaning) -> Tensor:
    """What stands for ``meaning`` ``[width]``, given the categories' ``rows`` ``[rows, width]``."""
    direction = _directions(rows.shape[1])[_NAMES.index(meaning.relation)].to(rows.device)
    row = rows[meaning.category] + _SCALE * direction
    if meaning.other is not None:
        row = row + _SCALE * rows[meaning.other].roll(rows.shape[1] // 2)
    return row


@dataclass(frozen=True)
class Referred:
    """What a decoder is asked in referring expressions, beside a conversation."""

    meanings: tuple[Meaning, ...]
    # Of each: the index of the one object that it means.
    targets: tuple[tuple[int, ...], ...]

    @property
    def categories(self) -> set[int]:
        """The categories that they are about."""
        return {meaning.category for meaning in self.meanings}


def choose_referred(scene: Scene, categories: Collection[int], rng: np.random.Generator) -> Referred:
    """Up to eight different expressions for things of ``scene`` that are of ``categories``.

    Things that have others of their kind beside them are preferred: without these the category alone would do. Several
    expressions about one kind teach what sets each of them apart.
    """
    found: dict[Meaning, int] = {}
    for _ in range(_TRIES):
        expression = choose_referring(scene, ENGLISH, rng)
        meaning = read_referring(expression.phrase) if expression else None
        if expression is None or meaning is None:
            continue
        if meaning.category not in categories or meaning in found:
            continue
        alone = len(members(scene, CATEGORIES[meaning.category])) == 1
        if alone and rng.random() > _ALONE:
            continue
        found[meaning] = expression.target
        if len(found) == _MOST_REFERRED:
            break
    return Referred(tuple(found), tuple((target,) for target in found.values()))


def referring_links(rows: Tensor, meanings: Sequence[Meaning]) -> Tensor:
    """What stands for each of ``meanings``, ``[meanings, width]``."""
    return torch.stack([referring_row(rows, meaning) for meaning in meanings]) if meanings else rows[:0]


def asked_links(
    links: Sequence[Tensor], rows: Tensor, beside: Sequence[list[int]], referring: Sequence[Sequence[Meaning]]
) -> list[Tensor]:
    """All that a decoder is asked of each sample: its ``links``, the rows ``beside`` them, then the expressions."""
    return [
        torch.cat([link, rows[others], referring_links(rows, meanings)])
        for link, others, meanings in zip(links, beside, referring, strict=True)
    ]


@cache
def _directions(width: int) -> Tensor:
    """The directions ``[names, width]`` of ``_NAMES``; trained weights depend on these numbers."""
    return torch.randn(len(_NAMES), width, generator=torch.Generator().manual_seed(_SEED))


def _pattern(template: str) -> re.Pattern[str]:
    words = {name: f"(?P<{name}>.+)" for name in ("one", "other")} | {"measure": "."}
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(words[part] if place % 2 else re.escape(part) for place, part in enumerate(parts)))


_PATTERNS = tuple(
    (relation, _pattern(template))
    for wordings in (SUPERLATIVES, RELATIONS)
    for relation, languages in wordings.items()
    for templates in languages.values()
    for template in templates
)
_CATEGORIES = {
    name: index for index, category in enumerate(CATEGORIES) for name in (category.english, category.chinese)
}
