"""``superlink batch``: many requests in one file, and whole folders of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from superlink.batch_documents import ENDPOINTS
from superlink.batch_results import BatchJob
from superlink.cli.batch_run import export_coco, run
from superlink.cli.connected import connected_client
from superlink.cli.console import fail, notes, output
from superlink.cli.files import console_for_people, write_json
from superlink.cli.options import (
    ASKED_PANEL,
    DEFAULT_PROFILE,
    RESULT_PANEL,
    ApiKeyOption,
    JsonOption,
    ProfileOption,
    SetOption,
    UrlOption,
)
from superlink.client import Client
from superlink.connection_settings import DEFAULT_TIMEOUT_S

batch = typer.Typer(
    help="""Have many requests answered without waiting for them: a folder of images, or a file of requests.

    Example: superlink batch run --images photos --prompt "What is here? Show me." --out answers""",
    no_args_is_help=True,
)
batch.command("run")(run)

# An upload may be large.
TRANSFER_TIMEOUT_S = 3600.0

BatchArgument = Annotated[
    str, typer.Argument(metavar="BATCH", help="As `superlink batch list` shows it.", show_default=False)
]


@batch.command("create")
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A request a line, in JSON.", show_default=False)],
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", help=f"What the lines ask: {', '.join(ENDPOINTS)}.", rich_help_panel=ASKED_PANEL),
    ],
    window: Annotated[
        str,
        typer.Option(
            "--window",
            help="After this, lines that are not answered get an error: 10m, 24h, 7d.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = "24h",
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="Is told when the batch is over.", rich_help_panel=RESULT_PANEL),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show how far it is until it is over.", rich_help_panel=RESULT_PANEL)
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Upload a file of requests, have them answered, and print the batch's id.

    A line reads {"custom_id": "scene-1", "method": "POST", "url": "/v1/detect", "body": {"image": …, "categories": …}}.
    With --wait the exit code is 1 unless every line was answered.

    Example: superlink batch create requests.jsonl --endpoint /v1/detect --wait
    """
    if not file.is_file():
        fail(f"{file} is no file.", exit_code=2)
    if endpoint not in ENDPOINTS:
        fail(f"--endpoint {endpoint}: known are {', '.join(ENDPOINTS)}.", exit_code=2)
    with _client(profile, settings, url, api_key, TRANSFER_TIMEOUT_S) as client:
        job = client.batches.create(file, endpoint=endpoint, completion_window=window, webhook_url=webhook)
        output.print(job.id, highlight=False)
        if wait:
            _end(_wait(client, job))


@batch.command("status")
def status(
    batch_id: BatchArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over.")] = False,
    json_file: JsonOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Say how far a batch is. Exit code 1 where it is over and not every line was answered.

    Example: superlink batch status batch_01a21e318d4da644a0c25a5d2109 --wait
    """
    with _client(profile, settings, url, api_key) as client:
        job = client.batches.get(batch_id)
        if wait and not job.is_over:
            job = _wait(client, job)
    console_for_people(json_file).print(_table([job]))
    write_json(json_file, job.model_dump_json(indent=2, by_alias=True))
    _end(job)


@batch.command("list")
def list_batches(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="The last so many.")] = 20,
    json_file: JsonOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Show the batches of the API key, the last one first.

    Example: superlink batch list --limit 5
    """
    with _client(profile, settings, url, api_key) as client:
        page = client.batches.list(limit=limit)
    console_for_people(json_file).print(_table(page.data))
    write_json(json_file, page.model_dump_json(indent=2, by_alias=True))


@batch.command("cancel")
def cancel(
    batch_id: BatchArgument,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Have nothing more of a batch asked. What was answered is kept.

    Example: superlink batch cancel batch_01a21e318d4da644a0c25a5d2109
    """
    with _client(profile, settings, url, api_key) as client:
        job = client.batches.cancel(batch_id)
    output.print(f"{job.id} is {job.status}.", highlight=False)


@batch.command("download")
def download(
    batch_id: BatchArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where output.jsonl and errors.jsonl go."),
    ] = Path(),
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Write the results of a batch that is over: answers to output.jsonl, the other lines to errors.jsonl.

    Example: superlink batch download batch_01a21e318d4da644a0c25a5d2109 --out results
    """
    with _client(profile, settings, url, api_key, TRANSFER_TIMEOUT_S) as client:
        job = _over(client, batch_id)
        for name, file_id in (("output.jsonl", job.output_file_id), ("errors.jsonl", job.error_file_id)):
            if file_id is not None:
                _write(out / name, client.batches.content(file_id))


@batch.command("export")
def export(
    batch_id: BatchArgument,
    coco: Annotated[
        Path, typer.Option("--coco", metavar="FILE", help="Write what was found as COCO's annotation format.")
    ],
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Write what was found in the images of a batch that is over as one COCO file.

    A line is an image, whose file name is the line's custom_id. Names have one id over all lines.

    Example: superlink batch export batch_01a21e318d4da644a0c25a5d2109 --coco annotations.json
    """
    with _client(profile, settings, url, api_key, TRANSFER_TIMEOUT_S) as client:
        export_coco(client.batches.results(_over(client, batch_id)), coco)


def _client(
    profile: str,
    settings: list[str] | None,
    url: str | None,
    api_key: str | None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> AbstractContextManager[Client]:
    return connected_client(
        profile=profile, settings=settings, url=url, start=False, api_key=api_key, timeout_s=timeout_s
    )


def _over(client: Client, batch_id: str) -> BatchJob:
    job = client.batches.get(batch_id)
    if not job.is_over:
        fail(f"{job.id} is {job.status}. Wait for it: superlink batch status {job.id} --wait")
    return job


def _wait(client: Client, job: BatchJob) -> BatchJob:
    with _bar() as show:
        return client.batches.wait(job, on_progress=show)


@contextmanager
def _bar() -> Iterator[Callable[[BatchJob], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("waiting", total=None)

        def show(job: BatchJob) -> None:
            done = job.counts.completed + job.counts.failed
            progress.update(task, description=job.status, completed=done, total=job.counts.total or None)

        yield show


def _table(jobs: tuple[BatchJob, ...] | list[BatchJob]) -> Table:
    table = Table("batch", "status", "endpoint", "lines", "answered", "failed", "made")
    table.add_column("why", overflow="fold")
    for job in jobs:
        problems = job.errors.data if job.errors is not None else ()
        counts = (job.counts.total, job.counts.completed, job.counts.failed)
        table.add_row(
            job.id,
            job.status,
            job.endpoint,
            *(f"{count:,}" for count in counts),
            _local(job.created_at),
            escape(" ".join(problem.message for problem in problems)),
        )
    return table


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _end(job: BatchJob) -> None:
    """Exit code 1 where a batch is over and a line of it has no answer."""
    if job.is_over:
        notes.print(
            f"{job.status}: {job.counts.completed:,} of {job.counts.total:,} lines answered, "
            f"{job.counts.failed:,} failed",
            highlight=False,
        )
        if job.status != "completed" or job.counts.failed:
            raise typer.Exit(1)


def _write(file: Path, content: Iterator[bytes]) -> None:
    started = time.monotonic()
    partial = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as written:
            for piece in content:
                written.write(piece)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        fail(f"{file} cannot be written: {error.strerror}.")
    notes.print(f"wrote {file} ({file.stat().st_size:,} bytes, {time.monotonic() - started:.1f} s)", highlight=False)
