"""The super link: learned queries behind each routing token, and heads that project their states to the decoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from superlink.configuration import Section


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

    Routes of one decoder share its head; every route has a table of its own.
    """

    def __init__(self, routes: Sequence[Route], hidden_width: int, adapter_version: str) -> None:
        """Raises ValueError when routes of one decoder disagree on its width."""
        super().__init__()
        self.routes = {route.token: route for route in routes}
        self.adapter_version = adapter_version
        self.tables = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        self.first_row: dict[str, int] = {}
        rows = 0
        widths: dict[str, tuple[int, bool]] = {}
        for route in routes:
            # 0.02 is the scale of the token embeddings beside which the queries stand.
            self.tables[_key(route.token)] = nn.Parameter(torch.randn(route.queries, hidden_width) * 0.02)
            self.first_row[route.token] = rows
            rows += route.queries
            shape = (route.width, route.pooled)
            if widths.setdefault(route.decoder, shape) != shape:
                raise ValueError(f"The routes of decoder {route.decoder!r} disagree on its link width or pooling.")
            if route.decoder not in self.heads:
                self.heads[route.decoder] = ProjectionHead(hidden_width, route.width, route.pooled)

    def queries(self, route: str) -> Tensor:
        """The query table ``[queries, hidden]`` of ``route``."""
        table: Tensor = self.tables[_key(route)]
        return table

    def all_queries(self) -> Tensor:
        """Every table, one under the other; ``first_row`` says where each route's starts."""
        return torch.cat([self.queries(route) for route in self.routes])

    def project(self, states: Tensor, decoder: str) -> Tensor:
        """Hidden states ``[groups, queries, hidden]`` to link embeddings ``[groups, (queries,) width]``."""
        projected: Tensor = self.heads[decoder](states)
        return projected


def _key(route: str) -> str:
    """A parameter name: "[DET]" becomes "det"."""
    return route.strip("[]").lower()
