"""``superlink detect``, ``segment`` and ``pose``: known things, found without free text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from superlink.cli.connected import connected_client
from superlink.cli.console import fail
from superlink.cli.files import console_for_people, read_image, write_json
from superlink.cli.options import (
    ASKED_PANEL,
    DEFAULT_PROFILE,
    ApiKeyOption,
    BoxOption,
    ImageArgument,
    JsonOption,
    MostOption,
    OutOption,
    PointOption,
    ProfileOption,
    SetOption,
    StartOption,
    ThresholdOption,
    TimeoutOption,
    TimingsOption,
    UrlOption,
    parse_marks,
)
from superlink.cli.report import print_absent, print_detections, print_timings, write_picture
from superlink.connection_settings import DEFAULT_TIMEOUT_S
from superlink.results import DetectionAnswer

NamesArgument = Annotated[
    list[str] | None, typer.Argument(help='What to look for: dog cat "red apple" 小狗.', show_default=False)
]
PhraseOption = Annotated[
    str | None,
    typer.Option(
        "--phrase",
        help='One description instead of names, commas and all: "the dog, left of the tree".',
        rich_help_panel=ASKED_PANEL,
    ),
]


def detect(
    image: ImageArgument,
    categories: NamesArgument = None,
    phrase: PhraseOption = None,
    threshold: ThresholdOption = None,
    most: MostOption = None,
    out: OutOption = None,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Look for named things in an image, without free text: the fast path.

    Prints a table of boxes in pixels, best first, and the names that are not there. What the image shows is for
    superlink ask to say; this says where the things are that you name.

    Example: superlink detect scene.png dog cat "red apple" --out annotated.png

    Example: superlink detect scene.png --phrase "the leftmost dog" --threshold 0.4

    Example: superlink detect - dog --json - < scene.png | jq '.detections[].bbox'
    """
    content = read_image(image)
    names = _wanted(categories, phrase, "Say what to look for: names or --phrase.")
    with connected_client(
        profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
    ) as client:
        found = client.detect(content, names, phrase=phrase, score_threshold=threshold, max_detections=most)
    _report(content, found, timings, out, json_file)


def segment(
    image: ImageArgument,
    categories: NamesArgument = None,
    phrase: PhraseOption = None,
    points: PointOption = None,
    boxes: BoxOption = None,
    semantic: Annotated[
        bool,
        typer.Option(
            "--semantic",
            help="One mask a name, of all that it means, instead of one a thing.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = False,
    threshold: ThresholdOption = None,
    most: MostOption = None,
    out: OutOption = None,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Cut named or marked things out of an image, pixel by pixel; --out draws the masks, --json writes them.

    Marked things are listed as "region 1", "region 2" ..., points first, with one mask each. Masks in JSON are COCO's
    run-length encoding, which pycocotools reads.

    Example: superlink segment scene.png dog cat --point 120,80 --out masks.png

    Example: superlink segment scene.png grass sky --semantic --json masks.json
    """
    content = read_image(image)
    regions = parse_marks(points, boxes)
    if regions and not categories:
        names = None
    else:
        names = _wanted(categories, phrase, "Say what to cut out: names, --phrase, --point or --box.")
    with connected_client(
        profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
    ) as client:
        found = client.segment(
            content,
            names,
            phrase=phrase,
            regions=regions,
            score_threshold=threshold,
            max_detections=most,
            semantic=semantic or None,
        )
    _report(content, found, timings, out, json_file)


def pose(
    image: ImageArgument,
    categories: NamesArgument = None,
    phrase: PhraseOption = None,
    keypoints: Annotated[
        str | None,
        typer.Option(
            "--keypoints",
            metavar="NAMES",
            help='Which ones: "nose,left wrist". Default: all that are known.',
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    threshold: ThresholdOption = None,
    most: MostOption = None,
    out: OutOption = None,
    json_file: JsonOption = None,
    timings: TimingsOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Find things and where their keypoints are; --out draws the skeletons, --json writes them.

    Every keypoint has a confidence that it is seen, and is there: it is low for what is hidden, and --out draws such
    ones hollow.

    Example: superlink pose scene.png person --keypoints "nose,left wrist" --out poses.png
    """
    content = read_image(image)
    names = _wanted(categories, phrase, "Say what to look for: names or --phrase.")
    with connected_client(
        profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
    ) as client:
        found = client.pose(
            content,
            names,
            phrase=phrase,
            keypoints=None if keypoints is None else [keypoints],
            score_threshold=threshold,
            max_detections=most,
        )
    _report(content, found, timings, out, json_file)
    console = console_for_people(json_file)
    for number, detection in enumerate(found.detections, 1):
        places = ", ".join(f"{each.name} {each.x:.0f},{each.y:.0f} ({each.score:.2f})" for each in detection.keypoints)
        console.print(f"{escape(detection.phrase)} {number}: {escape(places)}", highlight=False)


def _wanted(categories: list[str] | None, phrase: str | None, ways: str) -> list[str] | None:
    """The names, None beside a phrase. Ends the command where nothing is said, with the ``ways`` to say it, or both."""
    if categories and phrase is not None:
        fail("Give either names or --phrase.", exit_code=2)
    if not categories and phrase is None:
        fail(ways, exit_code=2)
    return categories or None


def _report(content: bytes, found: DetectionAnswer, timings: bool, out: Path | None, json_file: Path | None) -> None:
    console = console_for_people(json_file)
    print_detections(found.detections, console)
    print_absent(found, console)
    if timings:
        print_timings(found.timings, console)
    write_picture(content, found.detections, out)
    write_json(json_file, found.model_dump_json(indent=2, by_alias=True))
