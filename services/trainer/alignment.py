"""Aligns the links of plain category names with the rows of the detector's vocabulary.

The detector learned to be asked in these rows. Matching losses alone are too weak and too noisy a signal for the MLLM
to find them; telling every link which row it should be is a strong one. Cross-entropy alone is content with links that
lie far out beyond their row, where the detector has never been asked; a squared error calls them back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.mllm.model import Mllm
from services.trainer.mllm_samples import LanguageBatch
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.segment_names import REGION_ROW

# Rows are about 16 apart; this variance makes a link that is halfway between two of them undecided.
_VARIANCE = 8.0
_NUMBERED = re.compile(r" [0-9]+$")
_REGION_WORDS = ("region", "区域")
_CATEGORY_OF_NAME = {
    name: index
    for index, category in enumerate(CATEGORIES)
    for name in (category.english, category.english_plural, category.chinese)
}


def category_of(phrase: str) -> int:
    """The category that a phrase names in English (singular or plural) or Chinese, or -1."""
    return _CATEGORY_OF_NAME.get(phrase.lower(), -1)


def row_of(phrase: str) -> int:
    """The row of the segmenter's vocabulary that a phrase stands for, or -1; categories come first in every vocabulary.

    "region 1" and "区域 1" stand for whatever is marked, "dog 2" for a dog: which one, the segmenter is told apart.
    """
    words = _NUMBERED.sub("", phrase)
    return REGION_ROW if words != phrase and words in _REGION_WORDS else category_of(words)


def alignment_term(mllm: Mllm, parts: Sequence[LanguageBatch], states: Sequence[Tensor], vocabulary: Tensor) -> Tensor:
    """Cross-entropy of every link against its row, and half the squared distance from it, a dimension.

    For the cross-entropy the rows ``[rows, width]`` are Gaussians of one variance. All decoders whose links are
    as wide share these rows.

    ``states`` are the hidden states of ``parts``, as ``language_term`` returns them. Links of anything but the
    rows' names have no say. Zero when there are none.
    """
    decoders = {route.decoder for route in mllm.config.routes if route.pooled and route.width == vocabulary.shape[1]}
    links, categories = [], []
    for part, hidden in zip(parts, states, strict=True):
        for decoder in sorted(decoders):
            for row_links, row in zip(mllm.links(hidden, part.groups, decoder), part.groups, strict=True):
                groups = [group for group in row if mllm.link.routes[group.route].decoder == decoder]
                meant = [row_of(group.phrase) for group in groups]
                known = [place for place, target in enumerate(meant) if 0 <= target < len(vocabulary)]
                if known:
                    links.append(row_links[known])
                    categories.extend(meant[place] for place in known)
    if not links:
        return states[0].new_zeros(())
    wanted = torch.tensor(categories, device=vocabulary.device)
    distances = torch.cdist(torch.cat(links), vocabulary).square()
    own = distances.gather(1, wanted[:, None]).mean() / vocabulary.shape[1]
    return functional.cross_entropy(-distances / (2 * _VARIANCE), wanted) + own / 2
