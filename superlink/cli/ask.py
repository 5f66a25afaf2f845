"""``superlink ask``, ``detect``, ``segment`` and ``pose``: questions to a stack that runs, or lives for the call."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.markup import escape
from rich.table import Table

from superlink.cli.console import fail, notes, output
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, UrlOption, gateway_url, read_profile
from superlink.cli.up import stack_for_one_call
from superlink.client import Client
from superlink.composition import side_by_side
from superlink.drawing import FONT_VARIABLE, annotate
from superlink.results import (
    Answer,
    Detection,
    DetectionAnswer,
    Finished,
    GeneratedImage,
    ObservationRead,
    TextDelta,
    Timing,
)

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.", show_default=False)]
StartOption = Annotated[bool, typer.Option("--start", help="Start a stack for this call and stop it afterwards.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="PNG", help="Write the image with its boxes.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the whole answer.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Drop boxes below this probability.")
]
PointOption = Annotated[
    list[str] | None, typer.Option("--point", metavar="X,Y", help="Mark the thing at this pixel. Repeatable.")
]
BoxOption = Annotated[
    list[str] | None, typer.Option("--box", metavar="X1,Y1,X2,Y2", help="Mark the thing in this box. Repeatable.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")]


def ask(
    image_file: ImageArgument,
    prompt: Annotated[str, typer.Argument(help="What you want to know, in English or Chinese.", show_default=False)],
    points: PointOption = None,
    boxes: BoxOption = None,
    url: UrlOption = None,
    start: StartOption = False,
    out: OutOption = None,
    json_file: JsonOption = None,
    threshold: ThresholdOption = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=0, max=8, help="How often the model may read results and go on.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of images that the answer draws or edits.")] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Also print where the time went.")] = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Ask about an image: prints the answer as it is written, then what the tools found for it.

    Where the answer draws or edits, --out writes one picture: the annotated image, and beside it what was made.
    What is marked with --point and --box is "region 1", "region 2" ..., points first.

    Example: superlink ask scene.png "How many dogs are there?" --out annotated.png
    """
    content = read_image(image_file)
    regions = parse_marks(points, boxes)
    with gateway_address(profile, settings, url, start) as address, Client(address, timeout_s=timeout_s) as client:
        answer = None
        events = client.chat(
            content,
            prompt,
            stream=True,
            regions=regions,
            score_threshold=threshold,
            max_rounds=rounds,
            drawing=None if seed is None else {"seed": seed},
        )
        for event in events:
            match event:
                case TextDelta(text):
                    output.print(text, end="", markup=False, highlight=False)
                case ObservationRead(observation):
                    found = ", ".join(f"{group.phrase}: {len(group.objects)}" for group in observation.groups)
                    notes.print(f"\n[dim]read from the tools: {escape(found)}[/]")
                case Finished(finished):
                    answer = finished
        output.print()
    if answer is None:
        fail("The gateway closed the connection before the answer was complete. Its log says why.")
    print_findings(answer)
    for error in answer.errors:
        notes.print(f"[bold red]{escape(error.service)} failed:[/] {escape(error.detail)}")
    if timings:
        print_timings(answer.timings)
    _save(content, answer.detections, out, answer.images)
    _save_json(answer, json_file)


def detect(
    image: ImageArgument,
    categories: Annotated[
        list[str], typer.Argument(help='What to look for: dog cat "red apple" 小狗.', show_default=False)
    ],
    url: UrlOption = None,
    start: StartOption = False,
    out: OutOption = None,
    json_file: JsonOption = None,
    threshold: ThresholdOption = None,
    timings: Annotated[bool, typer.Option("--timings", help="Also print where the time went.")] = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Look for named things in an image, without free text: the fast path.

    Example: superlink detect scene.png dog cat "red apple" --out annotated.png
    """
    content = read_image(image)
    with gateway_address(profile, settings, url, start) as address, Client(address, timeout_s=timeout_s) as client:
        found = client.detect(content, categories, score_threshold=threshold)
    _report(content, found, timings, out, json_file)


def segment(
    image: ImageArgument,
    categories: Annotated[
        list[str] | None, typer.Argument(help='What to cut out: dog cat "red apple" 小狗.', show_default=False)
    ] = None,
    points: PointOption = None,
    boxes: BoxOption = None,
    semantic: Annotated[
        bool, typer.Option("--semantic", help="One mask a name, of all that it means, instead of one a thing.")
    ] = False,
    url: UrlOption = None,
    start: StartOption = False,
    out: OutOption = None,
    json_file: JsonOption = None,
    threshold: ThresholdOption = None,
    timings: Annotated[bool, typer.Option("--timings", help="Also print where the time went.")] = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Cut named or marked things out of an image, pixel by pixel; --out draws the masks, --json writes them.

    Example: superlink segment scene.png dog cat --point 120,80 --out masks.png
    """
    content = read_image(image)
    regions = parse_marks(points, boxes)
    if not categories and not regions:
        fail("Say what to cut out: names, --point or --box.", exit_code=2)
    with gateway_address(profile, settings, url, start) as address, Client(address, timeout_s=timeout_s) as client:
        found = client.segment(
            content, categories or None, regions=regions, score_threshold=threshold, semantic=semantic or None
        )
    _report(content, found, timings, out, json_file)


def pose(
    image: ImageArgument,
    categories: Annotated[list[str], typer.Argument(help="Whose keypoints to find: person deer.", show_default=False)],
    keypoints: Annotated[
        str | None,
        typer.Option("--keypoints", metavar="NAMES", help='Which ones: "nose,left wrist". Unset: all that are known.'),
    ] = None,
    url: UrlOption = None,
    start: StartOption = False,
    out: OutOption = None,
    json_file: JsonOption = None,
    threshold: ThresholdOption = None,
    timings: Annotated[bool, typer.Option("--timings", help="Also print where the time went.")] = False,
    timeout_s: TimeoutOption = 60.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Find things and where their keypoints are; --out draws the skeletons, --json writes them.

    Example: superlink pose scene.png person --keypoints "nose,left wrist" --out poses.png
    """
    content = read_image(image)
    names = None if keypoints is None else [keypoints]
    with gateway_address(profile, settings, url, start) as address, Client(address, timeout_s=timeout_s) as client:
        found = client.pose(content, categories, keypoints=names, score_threshold=threshold)
    _report(content, found, timings, out, json_file)
    for number, detection in enumerate(found.detections, 1):
        places = ", ".join(f"{each.name} {each.x:.0f},{each.y:.0f} ({each.score:.2f})" for each in detection.keypoints)
        output.print(f"{escape(detection.phrase)} {number}: {escape(places)}", highlight=False)


def parse_marks(points: Sequence[str] | None, boxes: Sequence[str] | None) -> list[dict[str, Any]]:
    """``--point`` and ``--box`` as regions of the API. Ends the command where one is not made of numbers."""
    marked: list[dict[str, Any]] = [{"points": [_numbers("--point", text, 2)]} for text in points or ()]
    return marked + [{"box": _numbers("--box", text, 4)} for text in boxes or ()]


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        fail(f"{option} {text}: expected {count} numbers with commas between them, in pixels.", exit_code=2)
    return numbers


def _report(content: bytes, found: DetectionAnswer, timings: bool, out: Path | None, json_file: Path | None) -> None:
    _print_detections(found.detections)
    for presence in found.presence:
        if not presence.found:
            output.print(f"{escape(presence.phrase)}: not found (best candidate {presence.score:.2f})", highlight=False)
    if timings:
        print_timings(found.timings)
    _save(content, found.detections, out)
    if json_file is not None:
        write_file(json_file, found.model_dump_json(indent=2, by_alias=True).encode())


def print_findings(answer: Answer) -> None:
    """What the tools found and made for an answer; what failed is for the caller to say."""
    _print_detections(answer.detections)
    for phrase in answer.phrases:
        if phrase.found is False:
            output.print(f"{escape(phrase.phrase)}: not found", highlight=False)
        for image in phrase.images:
            what = f"{escape(phrase.phrase)}: an image of {image.width} x {image.height} pixels, seed {image.seed}"
            output.print(what, highlight=False)
    if answer.finish_reason == "length":
        notes.print("[yellow]The answer was cut off at the limit of its length or rounds.[/]")


def print_timings(timings: Sequence[Timing]) -> None:
    """Where the time of an answer went, hop by hop."""
    table = Table("service", "phase", "ms")
    for timing in timings:
        table.add_row(timing.service, timing.phase, f"{timing.milliseconds:.1f}")
    output.print(table)


@contextmanager
def gateway_address(profile: str, settings: list[str] | None, url: str | None, start: bool) -> Iterator[str]:
    """The address of the gateway to ask; with ``--start`` one that lives as long as the block."""
    chosen = read_profile(profile, settings)
    if not start:
        yield gateway_url(chosen, url)
        return
    if url is not None:
        fail("--start starts a stack of its own; leave out --url (and SUPERLINK_URL).", exit_code=2)
    with stack_for_one_call(chosen) as address:
        yield address


def read_image(image: Path) -> bytes:
    """The file's bytes; a file that cannot be read ends the command."""
    try:
        return image.read_bytes()
    except OSError as error:
        fail(f"{image} cannot be read: {error.strerror}.", exit_code=2)


def _print_detections(detections: Sequence[Detection]) -> None:
    if not detections:
        return
    table = Table("what", "score", "x1", "y1", "x2", "y2")
    for found in detections:
        corners = (found.box.x1, found.box.y1, found.box.x2, found.box.y2)
        table.add_row(escape(found.phrase), f"{found.score:.2f}", *(f"{corner:.0f}" for corner in corners))
    output.print(table)


def _save(
    content: bytes, detections: Sequence[Detection], out: Path | None, made: Sequence[GeneratedImage] = ()
) -> None:
    if out is None:
        return
    try:
        with Image.open(io.BytesIO(content)) as image:
            annotation = annotate(ImageOps.exif_transpose(image), detections)
    except (UnidentifiedImageError, OSError) as error:
        fail(f"The image cannot be drawn on: {error}")
    buffer = io.BytesIO()
    side_by_side([annotation.image, *(each.image for each in made)]).save(buffer, format="PNG")
    write_file(out, buffer.getvalue())
    if annotation.legend:
        meaning = ", ".join(f"#{number} {phrase}" for number, phrase in annotation.legend.items())
        notes.print(f"No font here has these characters, so the picture shows numbers: {escape(meaning)}.")
        notes.print(f"Install one (Debian: fonts-noto-cjk) or name a font file in {FONT_VARIABLE}.")


def _save_json(answer: Answer, json_file: Path | None) -> None:
    if json_file is not None:
        write_file(json_file, answer.model_dump_json(indent=2, by_alias=True).encode())


def write_file(file: Path, content: bytes) -> None:
    """Write ``content`` and say so; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    notes.print(f"wrote {file}", highlight=False)
