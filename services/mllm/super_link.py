"""The super link: learned queries behind each routing token, and heads that project their states to the decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from superlink.configuration import Section

# One table a route, or one for all routes.
QueryTables = Literal["separate", "shared"]
_SHARED = "shared"


class Route(Section):
    """A routing token and the decoder that it leads to."""

    # "[DET]".
    token: str
    # "detection".
    decoder: str
    # Super-link queries behind the token: 4 for perception, 64 for diffusion.
    queries: PositiveInt = 4
    # Width of the decoder's link embedding.
    width: PositiveInt = 128
    # Mean over the queries (perception), or one vector a query (diffusion).
    pooled: bool = True


class ProjectionHead(nn.Module):
    """Three linear layers with ReLU between them on every query, then the mean over the queries (VisionLLM v2)."""

    def __init__(self, hidden_width: int, link_width: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.layers = nn.Sequential(
            nn.Linear(hidden_width, link_width),
            nn.ReLU(),
            nn.Linear(link_width, link_width),
            nn.ReLU(),
            nn.Linear(link_width, link_width),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor) -> Tensor:
        """``[groups, queries, hidden]`` to ``[groups, width]``, or ``[groups, queries, width]`` when not pooled."""
        projected: Tensor = self.layers(states)  # (groups, queries, width)
        return projected.mean(dim=1) if self.pooled else projected


class SuperLink(nn.Module):
    """Query tables by route and projection heads by decoder.

    Routes of one decoder share its head. Every route has a table of its own, or all share one, of whose rows each takes
    the first, as many as it has queries.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        hidden_width: int,
        adapter_version: str,
        query_tables: QueryTables = "separate",
    ) -> None:
        """Raises ValueError when routes of one decoder disagree on its width."""
        super().__init__()
        self.routes = {route.token: route for route in routes}
        self._table_of = {token: _SHARED if query_tables == "shared" else _key(token) for token in self.routes}
        self.adapter_version = adapter_version
        self.tables = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        # Each route's first row in ``all_queries``.
        self.first_row: dict[str, int] = {}
        first_rows: dict[str, int] = {}
        rows = 0
        widths: dict[str, tuple[int, bool]] = {}
        for route in routes:
            table = self._table_of[route.token]
            if table not in first_rows:
                size = max(other.queries for other in routes if self._table_of[other.token] == table)
                # 0.02 is the scale of the token embeddings beside which the queries stand.
                self.tables[table] = nn.Parameter(torch.randn(size, hidden_width) * 0.02)
                first_rows[table] = rows
                rows += size
            self.first_row[route.token] = first_rows[table]
            shape = (route.width, route.pooled)
            if widths.setdefault(route.decoder, shape) != shape:
                raise ValueError(f"The routes of decoder {route.decoder!r} disagree on its link width or pooling.")
            if route.decoder not in self.heads:
                self.heads[route.decoder] = ProjectionHead(hidden_width, route.width, route.pooled)

    def queries(self, route: str) -> Tensor:
        """The queries ``[queries, hidden]`` of ``route``, a view of its table."""
        table: Tensor = self.tables[self._table_of[route]]
        return table[: self.routes[route].queries]

    def all_queries(self) -> Tensor:
        """Every table, one under the other; ``first_row`` says where each route's starts."""
        return torch.cat(list(self.tables.values()))

    def project(self, states: Tensor, decoder: str) -> Tensor:
        """Hidden states ``[groups, queries, hidden]`` to link embeddings ``[groups, (queries,) width]``."""
        projected: Tensor = self.heads[decoder](states)
        return projected


def _key(route: str) -> str:
    """A parameter name: "[DET]" becomes "det"."""
    return route.strip("[]").lower()
