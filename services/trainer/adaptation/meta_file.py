"""The meta file: which conversation files a training run mixes, how often each is repeated, and from where.

    {"driving": {"root": "drivelm", "annotation": "drivelm.jsonl", "repeat_time": 1, "length": 317000},
     "general": {"root": "sharegpt4v", "annotation": "general.jsonl", "repeat_time": 0.03, "length": 767000}}

Relative paths start at the folder that the meta file lies in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from services.trainer.adaptation.rows import ConversationRow, RowError, read_rows


class MetaFileError(ValueError):
    """A meta file is missing or wrong. The text names the file, the data set and the key."""


class DataSet(BaseModel):
    """One file of conversations. A misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Folder that paths of images and videos start at.
    root: str
    # The JSONL file.
    annotation: str
    # Re-encode images as JPEG of random quality (75 to 100); never for video.
    data_augment: bool = False
    # Up to 1: that share of the rows, from the first on. Above: whole repetitions.
    repeat_time: PositiveFloat = 1.0
    # Rows of the file.
    length: NonNegativeInt
    # Most tiles of an image, in place of the run's own limit.
    max_dynamic_patch: PositiveInt | None = None

    @field_validator("repeat_time")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("above 1 it must be a whole number of repetitions")
        return value

    @property
    def used_rows(self) -> int:
        """Rows of one epoch, repetitions counted."""
        return int(self.length * self.repeat_time)

    def row_of(self, place: int) -> int:
        """The line (from 0) behind place ``place`` of the ``used_rows`` of an epoch."""
        return place % self.length


def load_meta(file: Path) -> dict[str, DataSet]:
    """Read a meta file, with paths resolved. Raises MetaFileError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "`superlink adapt domains` and `superlink adapt convert` write such files."
        raise MetaFileError(f"{file}: cannot be read ({error.strerror}). {hint}") from error
    except ValueError as error:
        raise MetaFileError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise MetaFileError(f"{file}: must be an object that names at least one data set.")
    sets = {}
    for name, entry in content.items():
        try:
            found = DataSet.model_validate(entry)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join([str(name), *map(str, problem["loc"])])
            raise MetaFileError(f"{file}: {key}: {problem['msg'].removeprefix('Value error, ')}.") from error
        paths = {key: str(file.parent / getattr(found, key)) for key in ("root", "annotation")}
        sets[str(name)] = found.model_copy(update=paths)
    return sets


def save_meta(file: Path, sets: Mapping[str, DataSet]) -> None:
    """Write a meta file; paths below its folder become relative, so that the folder can move."""
    folder = file.parent.resolve()

    def shortened(path: str) -> str:
        whole = Path(path).resolve()
        return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)

    content = {
        name: found.model_copy(
            update={"root": shortened(found.root), "annotation": shortened(found.annotation)}
        ).model_dump(exclude_none=True)
        for name, found in sets.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check(sets: Mapping[str, DataSet], advance: Callable[[int], None]) -> Iterator[str]:
    """Look at every row and every file that rows name; yields a sentence for each problem.

    ``advance`` is told of rows as they are looked at. A wrong row ends its data set.
    """
    for name, data_set in sets.items():
        count = 0
        try:
            for row in read_rows(Path(data_set.annotation)):
                count += 1
                advance(1)
                yield from (f"{name}: {problem}" for problem in _missing(row, Path(data_set.root)))
        except RowError as error:
            yield f"{name}: {error}"
            continue
        if count != data_set.length:
            yield f"{name}: {data_set.annotation} has {count} rows, the meta file says length {data_set.length}."


def _missing(row: ConversationRow, root: Path) -> Iterable[str]:
    for path in (*row.images, *([row.video] if row.video else ())):
        if not (root / path).exists():
            yield f"row {row.id} names {path}, which is not in {root}."
