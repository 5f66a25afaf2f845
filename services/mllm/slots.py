"""Key-value memory and attention of the running batch: one slot a row, every row at its own length and step width.

The tokens of a step are packed one behind the other, so that the linear layers never compute padding; only attention
itself lays them out by row. Widening one row of eight by four queries then costs four tokens and not forty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Slots grow in steps of so many tokens, so that short conversations do not pay for the longest context.
GROWTH = 256

# The name under which transformers finds ``slot_attention``.
SLOT_ATTENTION = "superlink_slots"


@dataclass(frozen=True)
class Step:
    """Which rows a pass runs and where its packed tokens belong."""

    # Rows ``first`` to ``first + count``.
    first: int
    count: int
    # Tokens of the longest chunk, and keys that the pass looks at.
    width: int
    used: int
    # [tokens]: each token's slot, its place in its chunk, and its position in its sequence.
    slots: Tensor
    columns: Tensor
    positions: Tensor
    # [rows, 1, width, used] bool: which keys each query sees; None when every query sees every key.
    visible: Tensor | None

    @classmethod
    def plan(cls, first: int, lengths: Sequence[int], widths: Sequence[int], device: torch.device) -> Step:
        """Rows from slot ``first`` on, that hold ``lengths`` tokens each, are fed ``widths`` more."""
        rows, width, used = len(lengths), max(widths), max(map(int.__add__, lengths, widths))
        stored = torch.tensor(lengths, device=device)
        if width == 1:
            slots = torch.arange(first, first + rows, device=device)
            columns, positions = torch.zeros_like(stored), stored
        else:
            grid = torch.arange(width, device=device).expand(rows, width)
            real = grid < torch.tensor(widths, device=device).unsqueeze(1)
            row, columns = real.nonzero(as_tuple=True)
            slots, positions = row + first, stored[row] + columns
        visible: Tensor | None = None
        if rows > 1 or width > 1:
            queries = stored.unsqueeze(1) + torch.arange(width, device=device)  # (rows, width)
            visible = (torch.arange(used, device=device) <= queries.unsqueeze(2)).unsqueeze(1)
        return cls(first, rows, width, used, slots, columns, positions, visible)


class SlotCache:
    """Takes the place of a transformers cache inside the attention layers.

    ``begin`` says what the next forward pass runs; the layers then call ``update``. Places behind a row's end may hold
    leftovers; they are overwritten before anything can see them.
    """

    def __init__(
        self, layers: int, key_value_heads: int, head_width: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots = slots
        self.device = device
        self.capacity = 0
        self._shape = (key_value_heads, head_width)
        self._dtype = dtype
        self._keys = [self._empty(0) for _ in range(layers)]
        self._values = [self._empty(0) for _ in range(layers)]
        self._step = Step.plan(0, [0], [1], device)

    def _empty(self, capacity: int) -> Tensor:
        return torch.zeros(self.slots, capacity, *self._shape, dtype=self._dtype, device=self.device)

    def begin(self, step: Step) -> None:
        """The next pass runs ``step``."""
        self._grow(step.used)
        self._step = step

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store the packed ``[1, heads, tokens, head width]``.

        Returns all keys and values that the rows may look at, each ``[rows, heads, used, head width]``.
        """
        place = (self._step.slots, self._step.positions)
        self._keys[layer][place] = keys[0].transpose(0, 1)
        self._values[layer][place] = values[0].transpose(0, 1)
        return self._seen(self._keys[layer]), self._seen(self._values[layer])

    def get_seq_length(self, layer: int = 0) -> int:
        """Places in use; positions are always given, so this only satisfies the interface."""
        del layer
        return self._step.used

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row into another slot, so that the running rows stay side by side."""
        for stored in (*self._keys, *self._values):
            stored[target, :length] = stored[source, :length]

    def _seen(self, stored: Tensor) -> Tensor:
        step = self._step
        return stored[step.first : step.first + step.count, : step.used].transpose(1, 2)

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


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: Step | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of packed tokens ``[1, heads, tokens, head width]`` over the keys of their own rows.

    Without a ``step`` (training, the fast path) it is the library's own. Returns ``[1, tokens, heads, head width]``.
    """
    if step is None:
        attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, weights
    tokens = query.shape[2]
    if step.count == 1:
        rows = query
    elif step.width == 1:
        rows = query[0].transpose(0, 1).unsqueeze(2)
    else:
        spread = query.new_zeros(step.count, step.width, query.shape[1], query.shape[3])
        spread[step.slots - step.first, step.columns] = query[0].transpose(0, 1)
        rows = spread.transpose(1, 2)  # (rows, heads, width, head width)
    attended = nn.functional.scaled_dot_product_attention(
        rows,
        key,
        value,
        attn_mask=step.visible,
        scale=settings["scaling"],
        enable_gqa=key.shape[1] != query.shape[1],
    )
    if step.count > 1 and step.width > 1:
        packed = attended.transpose(1, 2)[step.slots - step.first, step.columns]
    else:
        packed = attended.transpose(1, 2)
    return packed.reshape(1, tokens, query.shape[1], query.shape[3]), None


AttentionInterface.register(SLOT_ATTENTION, slot_attention)
AttentionMaskInterface.register(SLOT_ATTENTION, sdpa_mask)
