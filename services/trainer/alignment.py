"""Aligns links with the rows of the vocabulary that their decoder was trained with.

A decoder learned to be asked in these rows. Its losses alone are too weak and too noisy a signal for the MLLM to find
them; telling every link which row it should be is a strong one. Cross-entropy alone is content with links that lie far
out beyond their row, where the decoder has never been asked; a squared error calls them back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from services.mllm.model import Mllm
from services.trainer.mllm_samples import LanguageBatch
from services.trainer.referring_rows import Meaning, read_referring, referring_links
from services.trainer.vocabularies import Vocabulary

# Rows are about 16 apart; this variance makes a link that is halfway between two of them undecided.
_VARIANCE = 8.0


def alignment_term(
    mllm: Mllm, parts: Sequence[LanguageBatch], states: Sequence[Tensor], vocabularies: Mapping[str, Vocabulary]
) -> Tensor:
    """The sum over decoders of the mean cross-entropy of links against their rows plus half the squared distance.

    The distance is a dimension's mean. For the cross-entropy a decoder's rows ``[rows, width]`` are Gaussians of one
    variance. ``states`` are the hidden states of ``parts``, as ``language_term`` returns them. What stands for
    referring expressions is no row of the vocabulary and stands beside them; links that nothing stands for have no say.
    """
    term = states[0].new_zeros(())
    for decoder in sorted(mllm.link.heads.keys() & vocabularies.keys()):
        vocabulary = vocabularies[decoder]
        known = _known(mllm, parts, states, decoder, vocabulary)
        if known.wanted:
            term = term + _distance_term(known.links, vocabulary.rows, known.wanted)
        if known.meanings:
            # Every expression beside all plain rows and the other expressions of the batch.
            different = list(dict.fromkeys(known.meanings))
            rows = torch.cat([vocabulary.rows, referring_links(vocabulary.rows, different)])
            wanted = [len(vocabulary.rows) + different.index(meaning) for meaning in known.meanings]
            term = term + _distance_term(known.referring, rows, wanted)
    return term


def _distance_term(links: Tensor, rows: Tensor, wanted: Sequence[int]) -> Tensor:
    """See ``alignment_term``; ``wanted`` is the row that each of ``links`` should be."""
    target = torch.tensor(wanted, device=links.device)
    distances = torch.cdist(links, rows).square()
    own = distances.gather(1, target[:, None]).mean() / rows.shape[1]
    return functional.cross_entropy(-distances / (2 * _VARIANCE), target) + own / 2


class RowsRight:
    """Counts, decoder by decoder, how many links are nearer to the row that they should be than to any other."""

    def __init__(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        self._vocabularies = vocabularies
        self._right: dict[str, list[bool]] = defaultdict(list)

    def add(self, mllm: Mllm, parts: Sequence[LanguageBatch], states: Sequence[Tensor]) -> None:
        """Look at the links of ``parts``, whose hidden states are ``states``."""
        for decoder in sorted(mllm.link.heads.keys() & self._vocabularies.keys()):
            vocabulary = self._vocabularies[decoder]
            known = _known(mllm, parts, states, decoder, vocabulary)
            if known.wanted:
                nearest = torch.cdist(known.links, vocabulary.rows.to(known.links.device)).argmin(dim=1).tolist()
                self._right[decoder].extend(row == own for row, own in zip(nearest, known.wanted, strict=True))

    def figures(self) -> dict[str, float]:
        """The share of right links of every decoder that any link led to: "links_detection"."""
        return {f"links_{decoder}": sum(right) / len(right) for decoder, right in self._right.items()}


@dataclass(frozen=True)
class _Known:
    """Links to one decoder that something in its vocabulary stands for."""

    # [links, width] and the row of each.
    links: Tensor
    wanted: list[int]
    # [links, width] of referring expressions, and the meaning of each.
    referring: Tensor
    meanings: list[Meaning]


def _known(
    mllm: Mllm,
    parts: Sequence[LanguageBatch],
    states: Sequence[Tensor],
    decoder: str,
    vocabulary: Vocabulary,
) -> _Known:
    # All parts' links, one after the other; one look-up for all costs as much as one for each conversation.
    links: list[Tensor] = []
    count = 0
    places: list[int] = []
    wanted: list[int] = []
    referring: list[int] = []
    meanings: list[Meaning] = []
    for part, hidden in zip(parts, states, strict=True):
        projected = mllm.links(hidden, part.groups, decoder)
        for row_links, row, drawings in zip(projected, part.groups, part.drawings, strict=True):
            if row_links.dim() == 3:  # A row a query: (groups, queries, width).
                row_links = row_links.flatten(0, 1)
                places.extend(range(count, count + len(row_links)))
                wanted.extend(row for drawing in drawings for row in drawing)
            else:
                groups = [group for group in row if mllm.link.routes[group.route].decoder == decoder]
                for place, group in enumerate(groups, start=count):
                    known = vocabulary.row_of(group.phrase)
                    meaning = read_referring(group.phrase) if known < 0 else None
                    if known >= 0:
                        places.append(place)
                        wanted.append(known)
                    elif meaning is not None:
                        referring.append(place)
                        meanings.append(meaning)
            links.append(row_links)
            count += len(row_links)
    flat = torch.cat(links)
    chosen = flat[torch.tensor([*places, *referring], dtype=torch.long).to(flat.device)]
    return _Known(chosen[: len(places)], wanted, chosen[len(places) :], meanings)
