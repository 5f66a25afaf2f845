"""How a request's time is split over its hops."""

from __future__ import annotations

# Kept back at every hop, so that its failure can still be told before the caller itself gives up: a share of what is
# left, and never less than a busy machine needs to pass a message on.
_RESERVED_SHARE = 0.05
_SHORTEST_RESERVE_S, _LONGEST_RESERVE_S = 0.05, 0.5


def hop_timeout_s(left_s: float) -> float:
    """What the next hop may use of ``left_s`` seconds; zero or less when nothing would be left for its answer."""
    return left_s - min(max(_RESERVED_SHARE * left_s, _SHORTEST_RESERVE_S), _LONGEST_RESERVE_S)
