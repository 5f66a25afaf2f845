"""What travels between the parts of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BranchState:
    """One branch between two stages."""

    # [batch, height · width, width of the branch], row by row.
    tokens: Tensor
    # Height and width of the grid in cells.
    grid: tuple[int, int]
    # [batch, 1, width of the branch], of branches that carry a class token.
    class_token: Tensor | None = None

    def as_map(self) -> Tensor:
        """``[batch, width, height, width of the grid]``."""
        features: Tensor = self.tokens.transpose(1, 2).unflatten(2, self.grid)
        return features
