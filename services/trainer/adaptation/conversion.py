"""From a data set in its published layout to rows, pictures and an entry in the meta file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from services.trainer.adaptation.layouts.catalogue import LAYOUTS
from services.trainer.adaptation.layouts.layout import LayoutError, Source
from services.trainer.adaptation.meta_file import DataSet, load_meta, save_meta
from services.trainer.adaptation.region_marks import Mark
from services.trainer.adaptation.rows import ConversationRow, explain, write_rows

META_FILE = "meta.json"


@dataclass(frozen=True)
class Conversion:
    """What is converted into what."""

    # A name of ``LAYOUTS``.
    layout: str
    folder: Path
    split: str
    out: Path
    # Of the data set in the meta file, and of its JSONL file.
    name: str
    # Rows at most; None for all.
    limit: int | None = None
    mark: Mark = "box"


def convert(plan: Conversion, advance: Callable[[int], None]) -> int:
    """Write ``NAME.jsonl``, the pictures that rows need, and the data set's entry in ``meta.json``; returns the rows.

    ``advance`` is told of rows as they are made. Raises LayoutError, and MetaFileError for a broken meta file; the
    JSONL file and the meta file are then as they were.
    """
    layout = LAYOUTS[plan.layout]
    source = Source(plan.folder, plan.split, plan.out / plan.name, plan.mark)
    meta = plan.out / META_FILE
    sets = load_meta(meta) if meta.exists() else {}
    file = plan.out / f"{plan.name}.jsonl"
    if not plan.folder.is_dir():
        raise LayoutError(f"{plan.folder}: there is no such folder.")
    count = write_rows(file, islice(_told(layout.read(source), plan.folder, advance), plan.limit))
    root = source.pictures if layout.makes_pictures else plan.folder
    sets[plan.name] = DataSet(root=str(root), annotation=str(file), length=count)
    save_meta(meta, sets)
    return count


def _told(rows: Iterator[ConversationRow], folder: Path, advance: Callable[[int], None]) -> Iterator[ConversationRow]:
    """``rows``, of which there must be one. Raises LayoutError, also for data that make no valid row."""
    count = 0
    try:
        for row in rows:
            count += 1
            advance(1)
            yield row
    except ValidationError as error:
        raise LayoutError(f"{folder}: conversation {count + 1} is wrong. {explain(error)}") from error
    if not count:
        raise LayoutError(f"{folder}: no conversation came of it. Are the layout and the split the right ones?")
