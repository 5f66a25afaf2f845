"""Replay: how much general data is mixed into a domain's, so that a model does not forget what it could before.

The ratio r is general rows over domain rows (Mini-InternVL, section 3.3): DriveLM was best at 0.25, BDD-X and the
medical domain used 1. The general pool shares the rows out in proportion to the sizes of its sets, each by a
``repeat_time`` below 1, as the published meta files do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from services.trainer.adaptation.meta_file import DataSet


class ReplayError(ValueError):
    """The mixture that was asked for cannot be made. The text says what is missing."""


def mix(domain: Mapping[str, DataSet], general: Mapping[str, DataSet], ratio: float) -> dict[str, DataSet]:
    """``domain`` as it is, with so much of ``general`` that it has ``ratio`` times the domain's rows.

    The number of general rows is exact, rounded to a whole row. With a ratio of 0 there is none. Raises ReplayError
    where names meet, or where the general pool is too small: its rows are used once at most.
    """
    if ratio < 0:
        raise ReplayError(f"The replay ratio is general rows over domain rows, not {ratio:g}.")
    both = sorted(domain.keys() & general.keys())
    if both:
        raise ReplayError(f"In the domain and in the general data there are sets of one name: {', '.join(both)}.")
    rows = sum(data_set.used_rows for data_set in domain.values())
    wanted = round(ratio * rows)
    pool = {name: min(data_set.used_rows, data_set.length) for name, data_set in general.items()}
    available = sum(pool.values())
    if wanted > available:
        raise ReplayError(
            f"A ratio of {ratio:g} to {rows} domain rows needs {wanted} general rows, and there are {available}. "
            f"Add general data, or take a ratio of at most {available / max(1, rows):.4g}."
        )
    shares = _shares(list(pool.values()), wanted)
    replayed = {
        name: data_set.model_copy(update={"repeat_time": _factor(share, data_set.length)})
        for (name, data_set), share in zip(general.items(), shares, strict=True)
        if share
    }
    return {**domain, **replayed}


def draw_order(sets: Mapping[str, DataSet], seed: int) -> list[tuple[str, int]]:
    """One epoch over a mixture: the name of the set and the row (from 0), shuffled; a seed always gives one order."""
    places = [(name, data_set.row_of(place)) for name, data_set in sets.items() for place in range(data_set.used_rows)]
    return [places[place] for place in np.random.default_rng(seed).permutation(len(places))]


def _shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """``wanted`` shared out in proportion to ``sizes``, none above its size, by largest remainders."""
    total = sum(sizes)
    if not total:
        return [0] * len(sizes)
    exact = [wanted * size / total for size in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda place: shares[place] - exact[place])
    for place in by_remainder[: wanted - sum(shares)]:
        shares[place] += 1
    return shares


def _factor(share: int, length: int) -> float:
    """A ``repeat_time`` that yields exactly ``share`` of ``length`` rows when the product is cut to a whole number."""
    factor = share / length
    return factor if int(length * factor) == share else float(np.nextafter(factor, 2.0))
