"""``superlink batch run``: ask the same about every image of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from superlink.batch_coco import write_coco
from superlink.batch_results import LineResult
from superlink.cli.connected import connected_client
from superlink.cli.console import fail, notes, output
from superlink.cli.options import (
    ASKED_PANEL,
    DEFAULT_PROFILE,
    RESULT_PANEL,
    ApiKeyOption,
    ProfileOption,
    SetOption,
    StartOption,
    ThresholdOption,
    UrlOption,
)
from superlink.folder_batch import ERRORS_FILE, FolderRun, RunProgress

TOOLS = {"detect": "/v1/detect", "segment": "/v1/segment", "pose": "/v1/pose"}
# For the upload of one part.
TIMEOUT_S = 3600.0


def run(
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="PNG, JPEG and WebP files, subfolders too.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the answers go.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to ask about each image.", rich_help_panel=ASKED_PANEL)
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(
            "--categories",
            metavar="NAMES",
            help='What to look for in each image, without free text: "dog,cat".',
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    tool: Annotated[
        str, typer.Option("--tool", help="With --categories: detect, segment or pose.", rich_help_panel=ASKED_PANEL)
    ] = "detect",
    threshold: ThresholdOption = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            "--coco",
            metavar="FILE",
            help="Write all that was found as one COCO file, too.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Ask the same about every image of a folder; each answer becomes a JSON file in another folder.

    Ctrl-C, a lost connection or a power cut may come at any time: the same command goes on where it was, and asks
    nothing twice. Run again after its end, it asks about new images, and those that failed. Exit code 1 where an image
    has no answer; errors.jsonl says why.

    Example: superlink batch run --images photos --prompt "What is here? Show me." --out answers

    Example: superlink batch run --images photos --categories "dog,cat" --out found --coco annotations.json
    """
    endpoint, question = _question(prompt, categories, tool, threshold)
    with connected_client(
        profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=TIMEOUT_S
    ) as client:
        work = FolderRun(client.batches, images, out, endpoint, question)
        try:
            _run(work)
        except KeyboardInterrupt:
            fail("Interrupted. The same command goes on where it was; what is under way is answered meanwhile.", 130)
        except OSError as error:
            fail(f"{error.filename or out} cannot be written or read: {error.strerror}.")
    _report(work.progress, out)
    if coco is not None:
        export_coco(work.answers(), coco)
    if work.progress.failures:
        raise typer.Exit(1)


def export_coco(lines: Iterable[LineResult], file: Path) -> None:
    """Write a COCO file, and say what is in it."""
    try:
        summary = write_coco(lines, file)
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}.")
    notes.print(
        f"wrote {file}: {summary.images:,} images, {summary.annotations:,} annotations, "
        f"{summary.categories:,} categories; {summary.left_out:,} lines left out",
        highlight=False,
    )


def _question(
    prompt: str | None, categories: str | None, tool: str, threshold: float | None
) -> tuple[str, dict[str, Any]]:
    if (prompt is None) == (categories is None):
        fail("Say what to ask: either --prompt or --categories.", exit_code=2)
    if tool not in TOOLS:
        fail(f"--tool {tool}: known are {', '.join(TOOLS)}.", exit_code=2)
    options = {} if threshold is None else {"score_threshold": threshold}
    if prompt is not None:
        return "/v1/answer", {"prompt": prompt, **options}
    names = [name.strip() for name in (categories or "").split(",") if name.strip()]
    return TOOLS[tool], {"categories": names, **options}


def _run(work: FolderRun) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as bar:
        task = bar.add_task("images", total=None)

        def show(progress: RunProgress, under_way: int) -> None:
            done = progress.known + progress.answered + progress.failures
            bar.update(task, total=progress.images, completed=min(done + under_way, progress.images))

        work.run(show)


def _report(progress: RunProgress, out: Path) -> None:
    table = Table("images", "answered", "known before", "failed")
    counts = (progress.images, progress.answered, progress.known, progress.failures)
    table.add_row(*(f"{count:,}" for count in counts))
    output.print(table)
    for code, count in sorted(progress.failed.items(), key=lambda entry: -entry[1]):
        output.print(f"{code}: {count:,}", highlight=False)
    if progress.failures:
        notes.print(f"Why: {out / ERRORS_FILE}", highlight=False)
