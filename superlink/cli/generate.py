"""``superlink generate`` and ``edit``: images from words, and from an image and words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from superlink.cli.ask import (
    ImageArgument,
    JsonOption,
    StartOption,
    TimeoutOption,
    gateway_address,
    print_timings,
    read_image,
    write_file,
)
from superlink.cli.console import fail, notes, output
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, UrlOption
from superlink.client import Client
from superlink.drawing_calls import DrawingOptions
from superlink.results import DrawingAnswer

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="PNG", help="Where to write; several images are numbered: cat-1.png.")
]
CountOption = Annotated[int, typer.Option("-n", "--count", min=1, max=4, help="How many images to make.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="In pixels, multiples of 16: 128x128. Default: the tool's.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="The same seed makes the same image. Default: a new one each time.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, max=100, help="More take longer and bring out more.")
]
GuidanceOption = Annotated[
    float | None, typer.Option("--guidance", min=0, max=30, help="How far to follow the prompt; 1 does not exaggerate.")
]
TimingsOption = Annotated[bool, typer.Option("--timings", help="Also print where the time went.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in English or Chinese.", show_default=False)],
    out: OutOption = Path("drawing.png"),
    count: CountOption = 1,
    size: SizeOption = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    url: UrlOption = None,
    start: StartOption = False,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Draw what a prompt says; prints the seed, with which the same image can be made again.

    Example: superlink generate "a cat beside a tree" --out cat.png --seed 3 -n 2
    """
    options: DrawingOptions = {"n": count, "size": _size(size), "seed": seed, "steps": steps, "guidance": guidance}
    with (
        gateway_address(profile, settings, url, start) as address,
        Client(address, timeout_s=timeout_s) as client,
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
        typer.Option("--mask", metavar="PNG", help="Of the image's size; what is transparent in it is meant."),
    ] = None,
    count: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    image_guidance: Annotated[
        float | None, typer.Option("--image-guidance", min=0, max=30, help="How far to keep to the image.")
    ] = None,
    url: UrlOption = None,
    start: StartOption = False,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Change in an image what a prompt says; the result has the image's size.

    Example: superlink edit scene.png "make the dog blue" --out blue.png
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
        gateway_address(profile, settings, url, start) as address,
        Client(address, timeout_s=timeout_s) as client,
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
    several = len(drawn.images) > 1
    files = [
        out.with_name(f"{out.stem}-{number}{out.suffix}") if several else out
        for number in range(1, len(drawn.images) + 1)
    ]
    for file, image in zip(files, drawn.images, strict=True):
        write_file(file, image.content)
        output.print(f"{file}: {image.width} x {image.height} pixels, seed {image.seed}", highlight=False)
    if timings:
        print_timings(drawn.timings)
    if json_file is not None:
        document = drawn.model_dump(mode="json", exclude={"images": {"__all__": {"b64_json"}}})
        for file, entry in zip(files, document["images"], strict=True):
            entry["file"] = str(file)
        write_file(json_file, json.dumps(document, indent=2).encode())
