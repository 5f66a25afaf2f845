"""Aligns links with the rows of the vocabulary that their decoder was trained with.

A decoder learned to be asked in these rows. Its losses alone are too weak and too noisy a signal for the MLLM to find
them; telling every link which row it should be is a strong one. Cross-entropy alone is content with links that lie far
out beyond their row, where the decoder has never been asked; a squared error calls them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.mllm.model import Mllm
from services.trainer.mllm_samples import LanguageBatch
from services.trainer.vocabularies import Vocabulary

# Rows are about 16 apart; this variance makes a link that is halfway between two of them undecided.
_VARIANCE = 8.0


def alignment_term(
    mllm: Mllm, parts: Sequence[LanguageBatch], states: Sequence[Tensor], vocabularies: Mapping[str, Vocabulary]
) -> Tensor:
    """The sum over decoders of the mean cross-entropy of links against their rows plus half the squared distance.

    The distance is a dimension's mean. For the cross-entropy a decoder's rows ``[rows, width]`` are Gaussians of one
    variance. ``states`` are the hidden states of ``parts``, as ``language_term`` returns them. Links that no row stands
    for, such as referring expressions, have no say.
    """
    term = states[0].new_zeros(())
    for decoder in sorted(mllm.link.heads.keys() & vocabularies.keys()):
        vocabulary = vocabularies[decoder]
        links, wanted = _known(mllm, parts, states, decoder, vocabulary)
        if not wanted:
            continue
        target = torch.tensor(wanted, device=links.device)
        distances = torch.cdist(links, vocabulary.rows).square()
        own = distances.gather(1, target[:, None]).mean() / vocabulary.rows.shape[1]
        term = term + functional.cross_entropy(-distances / (2 * _VARIANCE), target) + own / 2
    return term


def _known(
    mllm: Mllm,
    parts: Sequence[LanguageBatch],
    states: Sequence[Tensor],
    decoder: str,
    vocabulary: Vocabulary,
) -> tuple[Tensor, list[int]]:
    """The links to ``decoder`` that a row stands for, ``[links, width]``, and these rows."""
    links, wanted = [], []
    for part, hidden in zip(parts, states, strict=True):
        projected = mllm.links(hidden, part.groups, decoder)
        for row_links, row, drawings in zip(projected, part.groups, part.drawings, strict=True):
            groups = [group for group in row if mllm.link.routes[group.route].decoder == decoder]
            if row_links.dim() == 3:  # A row a query: (groups, queries, width).
                links.append(row_links.flatten(0, 1))
                wanted.extend(row for drawing in drawings for row in drawing)
                continue
            rows = [vocabulary.row_of(group.phrase) for group in groups]
            known = [place for place, row in enumerate(rows) if row >= 0]
            links.append(row_links[known])
            wanted.extend(rows[place] for place in known)
    return torch.cat(links), wanted
