"""``superlink adapt``: data of a domain as conversations, checked and mixed with general data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.trainer.adaptation.conversion import META_FILE, Conversion, convert
from services.trainer.adaptation.layouts.catalogue import LAYOUTS
from services.trainer.adaptation.meta_file import DataSet, MetaFileError, check, load_meta, save_meta
from services.trainer.adaptation.region_marks import Mark
from services.trainer.adaptation.replay import ReplayError, mix
from superlink.cli.console import fail, notes, output

# More would scroll the first ones away, and they mostly repeat one cause.
_SHOWN_PROBLEMS = 20

adapt = typer.Typer(
    help="Prepare data of a domain (driving, medical, remote sensing, your own) for training; docs/adaptation.md.",
    no_args_is_help=True,
)

MetaArgument = Annotated[Path, typer.Argument(help="A meta file, as `superlink adapt convert` writes it.")]


@adapt.command("layouts")
def list_layouts_command() -> None:
    """List the layouts of data sets that can be converted, and what their folders hold.

    Example: superlink adapt layouts
    """
    table = Table("layout", "becomes", "files")
    for name, layout in LAYOUTS.items():
        table.add_row(name, layout.summary, layout.files)
    output.print(table)


@adapt.command("convert")
def convert_command(
    layout: Annotated[str, typer.Argument(help="How the data set is laid out: a name of `superlink adapt layouts`.")],
    folder: Annotated[Path, typer.Argument(help="The data set as it was unpacked.")],
    out: Annotated[Path, typer.Option(help="Folder for rows, made pictures and meta.json; several sets can share it.")],
    split: Annotated[str, typer.Option(help="Which part, as the data set itself spells it.")] = "train",
    name: Annotated[
        str | None, typer.Option(help="What the set is called in meta.json.", show_default="LAYOUT_SPLIT")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many conversations.")] = None,
    mark: Annotated[Mark, typer.Option(help="How the layout coco-marked marks a thing.")] = "box",
) -> None:
    """Turn a public data set into conversations: NAME.jsonl, and an entry in meta.json.

    Paths and places are checked on the way; the first thing that is wrong ends the command and leaves what was there.

    Example: superlink adapt convert dior-rsvg DIOR_RSVG --out adapted --split train
    """
    if layout not in LAYOUTS:
        fail(f"No layout {layout!r}. There are: {', '.join(LAYOUTS)}.", exit_code=2)
    plan = Conversion(layout, folder, split, out, name or f"{layout}_{split}", limit, mark)
    with _progress() as (progress, task):
        try:
            count = convert(plan, lambda rows: progress.advance(task, rows))
        except (ValueError, OSError) as error:
            # Whatever a layout, a meta file, a phrase or the disk does not allow; each says where.
            fail(str(error))
    output.print(f"{out / plan.name}.jsonl: {count} conversations, listed in {out / META_FILE}")


@adapt.command("check")
def check_command(meta: MetaArgument) -> None:
    """Look at every conversation of a meta file and at every image and video that they name.

    Exit code 1 when anything is wrong, with the file and the line.

    Example: superlink adapt check adapted/meta.json
    """
    sets = _load(meta)
    problems: list[str] = []
    with _progress() as (progress, task):
        problems.extend(check(sets, lambda rows: progress.advance(task, rows)))
    for problem in problems[:_SHOWN_PROBLEMS]:
        notes.print(problem, markup=False, highlight=False)
    if problems:
        rest = len(problems) - _SHOWN_PROBLEMS
        fail(f"{len(problems)} problems." + (f" The first {_SHOWN_PROBLEMS} are listed." if rest > 0 else ""))
    _print_sets(sets)


@adapt.command("mix")
def mix_command(
    domain: Annotated[Path, typer.Argument(help="Meta file of the domain.")],
    general: Annotated[Path, typer.Argument(help="Meta file of general data, to be replayed.")],
    ratio: Annotated[float, typer.Option(min=0, help="General conversations for each one of the domain.")],
    out: Annotated[Path, typer.Option(help="The meta file to write.")],
) -> None:
    """Mix general data into a domain's, so that a model does not forget what it could before.

    Mini-InternVL found 0.25 best for DriveLM, and took 1 for BDD-X and medicine, 0.2 of the pool for remote sensing.

    Example: superlink adapt mix driving/meta.json general/meta.json --ratio 0.25 --out mixed.json
    """
    try:
        mixed = mix(_load(domain), _load(general), ratio)
    except ReplayError as error:
        fail(str(error))
    save_meta(out, mixed)
    _print_sets(mixed)
    output.print(f"Wrote {out}")


@adapt.command("domains")
def make_domains_command(
    out: Annotated[Path, typer.Option(help="Folder for the sets, one sub-folder each.")] = Path("runs/domains"),
) -> None:
    """Write three small domains and general data, each for training and for testing, to try adaptation on one core.

    The recipes adaptation/tiny_* learn them. General pictures need `make sprites`.

    Example: superlink adapt domains
    """
    # Only this command needs torch and what composes scenes.
    from services.trainer.adaptation.domains.making import all_rows, make_domains
    from services.trainer.scenes.sprites import SpriteError

    with Progress(*Progress.get_default_columns(), console=notes) as progress:
        task = progress.add_task("Drawing", total=all_rows())
        try:
            metas = make_domains(out, lambda rows: progress.advance(task, rows))
        except SpriteError as error:
            fail(str(error))
    for meta in metas:
        output.print(str(meta))


def _load(file: Path) -> dict[str, DataSet]:
    try:
        return load_meta(file)
    except MetaFileError as error:
        fail(str(error))


def _print_sets(sets: dict[str, DataSet]) -> None:
    table = Table("data set", "rows", "repeat_time", "used in an epoch")
    for name, data_set in sets.items():
        table.add_row(name, str(data_set.length), f"{data_set.repeat_time:.4g}", str(data_set.used_rows))
    table.add_section()
    table.add_row("all", "", "", str(sum(data_set.used_rows for data_set in sets.values())))
    output.print(table)


@contextmanager
def _progress() -> Iterator[tuple[Progress, TaskID]]:
    """How many conversations have been seen; how many there will be is known only at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} conversations"), TimeElapsedColumn())
    with Progress(*columns, console=notes) as progress:
        yield progress, progress.add_task("", total=None)
