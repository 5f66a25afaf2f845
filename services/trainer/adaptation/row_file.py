"""Rows of a JSONL file by their number, read when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.rows import ConversationRow, RowError, parse_row


class RowFile:
    """The file of one data set; only the places where its lines begin are kept."""

    def __init__(self, data_set: DataSet) -> None:
        """Raises RowError where the file cannot be read or has another number of rows than the meta file says."""
        self.path = Path(data_set.annotation)
        starts, numbers, place = [], [], 0
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        starts.append(place)
                        numbers.append(number)
                    place += len(line)
        except OSError as error:
            raise RowError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if len(starts) != data_set.length:
            raise RowError(f"{self.path}: has {len(starts)} rows, but the meta file says length {data_set.length}.")
        # Byte where each row begins, and its line.
        self._starts = np.array(starts, dtype=np.int64)
        self._numbers = np.array(numbers, dtype=np.int64)

    def __getitem__(self, row: int) -> ConversationRow:
        """Row ``row``, counted from 0. Raises RowError naming file and line of a wrong one."""
        place = f"{self.path}, line {self._numbers[row]}"
        with self.path.open("rb") as lines:
            lines.seek(int(self._starts[row]))
            line = lines.readline()
        try:
            return parse_row(line.decode("utf-8"), place)
        except UnicodeDecodeError as error:
            raise RowError(f"{place}: is not UTF-8 ({error.reason} at byte {error.start}).") from error
