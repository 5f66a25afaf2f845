"""``superlink generate`` and ``edit``: images from words, and from an image and words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from superlink.cli.connected import connected_client
from superlink.cli.console import fail, notes
from superlink.cli.files import console_for_people, read_image, write_file, write_json
from superlink.cli.options import (
    ASKED_PANEL,
    DEFAULT_PROFILE,
    RESULT_PANEL,
    ApiKeyOption,
    ImageArgument,
    JsonOption,
    ProfileOption,
    SetOption,
    StartOption,
    TimeoutOption,
    TimingsOption,
    UrlOption,
)
from superlink.cli.report import print_timings
from superlink.connection_settings import DEFAULT_TIMEOUT_S
from superlink.drawing_calls import DrawingOptions
from superlink.results import DrawingAnswer

OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="PNG",
        help="Where to write; several images are numbered: cat-1.png.",
        rich_help_panel=RESULT_PANEL,
    ),
]
CountOption = Annotated[
    int, typer.Option("-n", "--count", min=1, max=4, help="How many images to make.", rich_help_panel=ASKED_PANEL)
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="In pixels, multiples of 16: 128x128. Default: the tool's.",
        rich_help_panel=ASKED_PANEL,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="The same seed makes the same image. Default: a new one each time.",
        rich_help_panel=ASKED_PANEL,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, max=100, help="More take longer and bring out more.", rich_help_panel=ASKED_PANEL),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0,
        max=30,
        help="How far to follow the prompt; 1 does not exaggerate.",
        rich_help_panel=ASKED_PANEL,
    ),
]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in English or Chinese.", show_default=False)],
    out: OutOption = Path("drawing.png"),
    count: CountOption = 1,
    size: SizeOption = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Draw what a prompt says; prints the seed, with which the same image can be made again.

    A bar shows the steps. With -n several images are made, each with a seed of its own; --json says which file has
    which.

    Example: superlink generate "a cat beside a tree" --out cat.png --seed 3 -n 2
    """
    options: DrawingOptions = {"n": count, "size": _size(size), "seed": seed, "steps": steps, "guidance": guidance}
    with (
        connected_client(
            profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
        ) as client,
        _progress_bar("drawing") as on_progress,
    ):
        drawn = client.generate(prompt, on_progress=on_progress, **options)
    _report(drawn, out, json_file, timings)


def edit(
    image: ImageArgument,
    prompt: Annotated[str, typer.Argument(help="What to change, in English or Chinese.", show_default=False)],
    out: OutOption = Path("edited.png"),
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="PNG",
            help="Of the image's size; what is transparent in it is meant.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    count: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    image_guidance: Annotated[
        float | None,
        typer.Option(
            "--image-guidance", min=0, max=30, help="How far to keep to the image.", rich_help_panel=ASKED_PANEL
        ),
    ] = None,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Change in an image what a prompt says; the result has the image's size.

    What the prompt is about is found by itself; where there are several, --mask says which. What an edit does not
    change is the image itself, pixel by pixel.

    Example: superlink edit scene.png "make the dog blue" --out blue.png

    Example: superlink edit scene.png "remove it" --mask dog.png --seed 3
    """
    content = read_image(image)
    mask_content = read_image(mask) if mask is not None else None
    options: DrawingOptions = {
        "n": count,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "image_guidance": image_guidance,
    }
    with (
        connected_client(
            profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
        ) as client,
        _progress_bar("editing") as on_progress,
    ):
        edited = client.edit(content, prompt, mask=mask_content, on_progress=on_progress, **options)
    _report(edited, out, json_file, timings)


@contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that the yielded function moves."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        fail(f"--size {text}: expected WIDTHxHEIGHT, for example 128x128.", exit_code=2)
    return int(width), int(height)


def _report(drawn: DrawingAnswer, out: Path, json_file: Path | None, timings: bool) -> None:
    console = console_for_people(json_file)
    several = len(drawn.images) > 1
    files = [
        out.with_name(f"{out.stem}-{number}{out.suffix}") if several else out
        for number in range(1, len(drawn.images) + 1)
    ]
    for file, image in zip(files, drawn.images, strict=True):
        write_file(file, image.content)
        console.print(f"{file}: {image.width} x {image.height} pixels, seed {image.seed}", highlight=False)
    if timings:
        print_timings(drawn.timings, console)
    document = drawn.model_dump(mode="json", exclude={"images": {"__all__": {"b64_json"}}})
    for file, entry in zip(files, document["images"], strict=True):
        entry["file"] = str(file)
    write_json(json_file, json.dumps(document, indent=2))
