"""The rows of a mixture in the order in which a run learns them, epoch after epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.packing import PackLimits, split_long
from services.trainer.adaptation.replay import draw_order
from services.trainer.adaptation.row_file import RowFile
from services.trainer.adaptation.row_reader import LearnedRow, RowReader
from services.trainer.adaptation.rows import ConversationRow, RowError

# A row of which nothing fits into a pack gives way to the next, so often at most, as published.
_ATTEMPTS = 10
# Epochs of one seed are never those of another.
_SEED_STRIDE = 1_000_003


class RowSets:
    """The files of a mixture, looked at before anything is learned."""

    def __init__(self, sets: Mapping[str, DataSet]) -> None:
        """Raises RowError where a file has not the rows that it should have, or its first row's images are missing."""
        self.sets = dict(sets)
        self._files = {name: RowFile(data_set) for name, data_set in sets.items()}
        for name, data_set in sets.items():
            row = self.row(name, 0) if data_set.length else None
            for path in () if row is None else (*row.images, *([row.video] if row.video else [])):
                if not (Path(data_set.root) / path).exists():
                    raise RowError(
                        f"{name}: its first row names {path}, which is not in {data_set.root}. "
                        "`superlink adapt check` looks at every row."
                    )

    def row(self, name: str, number: int) -> ConversationRow:
        """Row ``number``, from 0, of the data set ``name``."""
        return self._files[name][number]


class RowStream(Dataset[LearnedRow]):
    """Sample ``index`` is row ``index`` of the shuffled epochs, one behind the other."""

    def __init__(self, rows: RowSets, reader: RowReader, limits: PackLimits, seed: int) -> None:
        """Raises RowError for a mixture without rows."""
        self._rows, self._reader, self._limits, self._seed = rows, reader, limits, seed
        self._epoch, self._order = 0, self._draw(0)
        if not self._order:
            raise RowError("The meta file uses no row: every length times its repeat_time is below 1.")

    def __getitem__(self, index: int) -> LearnedRow:
        for attempt in range(_ATTEMPTS):
            epoch, place = divmod(index + attempt, len(self._order))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._draw(epoch)
            name, number = self._order[place]
            row = self._rows.row(name, number)
            learned = self._reader.learn(row, self._rows.sets[name], np.random.default_rng((self._seed, index)))
            if split_long(learned.sample, self._limits):
                return learned
        raise RowError(
            f"{name}: row {row.id} has {learned.sample.tokens} tokens and {learned.sample.tiles} tiles, more than fit "
            f"into a pack, and so had the {_ATTEMPTS - 1} rows before it. Raise adaptation.packing, or lower max_tiles."
        )

    def _draw(self, epoch: int) -> list[tuple[str, int]]:
        return draw_order(self._rows.sets, self._seed * _SEED_STRIDE + epoch)
