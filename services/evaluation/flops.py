"""``superlink flops``: what published networks cost, by the models of cost in ``services.backbones``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services.backbones.piip.published import PublishedRow, published_rows
from superlink.cli.console import output


class CostTable(StrEnum):
    """The tables that there are."""

    PIIP = "piip"


_ROWS: dict[CostTable, Callable[[], list[PublishedRow]]] = {CostTable.PIIP: published_rows}


def flops(
    table: Annotated[CostTable, typer.Option(help="Which table: piip, the image pyramids of docs/piip.md.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Print what published networks cost by our models, beside the figures in print, in 10⁹ multiply-accumulates.

    Nothing is measured or loaded. The papers call these figures FLOPs.

    Example: superlink flops --table piip --json piip.json
    """
    rows = _ROWS[table]()
    shown = Table("network", "G MACs", "published", "difference")
    for row in rows:
        shown.add_row(row.name, f"{row.gmacs:.2f}", f"{row.published:g}", f"{row.gmacs / row.published - 1:+.2%}")
    output.print(shown)
    if json_file is not None:
        content = {"table": table.value, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
