"""Key-value memory of the running batch: one slot a row, every row at its own length.

There is no padding to speak of. A step writes each row's new keys at that row's own positions and sees only keys at or
before its query. Places behind a row's end may hold leftovers; they are overwritten before anything can see them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Slots grow in steps of so many tokens, so that short conversations do not pay for the longest context.
GROWTH = 256


class SlotCache:
    """Takes the place of a transformers cache inside the attention layers.

    ``begin`` says which rows the next forward pass belongs to; the layers then call ``update``.
    """

    def __init__(
        self, layers: int, key_value_heads: int, head_width: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots = slots
        self.capacity = 0
        self._shape = (key_value_heads, head_width)
        self._dtype = dtype
        self._device = device
        self._keys = [self._empty(0) for _ in range(layers)]
        self._values = [self._empty(0) for _ in range(layers)]
        self._rows = slice(0, 0)
        self._row_index: Tensor = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._positions: Tensor = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._used = 0

    def _empty(self, capacity: int) -> Tensor:
        return torch.zeros(self.slots, capacity, *self._shape, dtype=self._dtype, device=self._device)

    def begin(self, first: int, count: int, positions: Tensor, used: int) -> None:
        """The next pass runs rows ``first`` to ``first + count``.

        ``positions`` ``[count, width]`` says where its tokens stand; keys before ``used`` are looked at.
        """
        self._grow(used)
        self._rows = slice(first, first + count)
        self._row_index = torch.arange(first, first + count, device=self._device).unsqueeze(1)
        self._positions = positions
        self._used = used

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store ``[rows, heads, width, head width]`` and return all keys and values that the pass may look at."""
        place = (self._row_index, self._positions)
        self._keys[layer][place] = keys.transpose(1, 2)
        self._values[layer][place] = values.transpose(1, 2)
        return self._seen(self._keys[layer]), self._seen(self._values[layer])

    def get_seq_length(self, layer: int = 0) -> int:
        """Places in use; positions are always given, so this only satisfies the interface."""
        del layer
        return self._used

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row into another slot, so that the running rows stay side by side."""
        for stored in (*self._keys, *self._values):
            stored[target, :length] = stored[source, :length]

    def _seen(self, stored: Tensor) -> Tensor:
        return stored[self._rows, : self._used].transpose(1, 2)

    def _grow(self, used: int) -> None:
        if used <= self.capacity:
            return
        capacity = -(-used // GROWTH) * GROWTH
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                new = self._empty(capacity)
                new[:, : self.capacity] = old
                stored[layer] = new
        self.capacity = capacity
