"""``superlink ask``: a question about an image, answered in text and by tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from superlink.cli.connected import connected_client
from superlink.cli.console import notes
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
from superlink.cli.report import print_findings, print_timings, write_picture
from superlink.connection_settings import DEFAULT_TIMEOUT_S
from superlink.results import Finished, ObservationRead, TextDelta


def ask(
    image: ImageArgument,
    prompt: Annotated[str, typer.Argument(help="What you want to know, in English or Chinese.", show_default=False)],
    before: Annotated[
        list[Path] | None,
        typer.Option(
            "--before",
            metavar="IMAGE",
            help="Show this image before the other; tools look at the last one. Repeatable.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    points: PointOption = None,
    boxes: BoxOption = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=0,
            max=8,
            help="How often the model may read results and go on.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of the answer's text.", rich_help_panel=ASKED_PANEL)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            min=0,
            max=2,
            help="0, the default, is always the most likely answer.",
            rich_help_panel=ASKED_PANEL,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of images that the answer draws or edits.", rich_help_panel=ASKED_PANEL),
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
    """Ask about an image: prints the answer as it is written, then what the tools found for it.

    The model decides which tools the question needs: "Where are the dogs?" detects, "Cut out the cow." segments, "Find
    the keypoints of the person." finds poses, "Draw a cat." draws, "Make the dog blue." edits. A question about what is
    there ("How many dogs are there?") is answered from what the tools find. Tools that are known beforehand are asked
    faster by superlink detect, segment and pose.

    What is marked with --point and --box is "region 1", "region 2" ..., points first. Where the answer draws or edits,
    --out writes one picture: the annotated image, and beside it what was made.

    Example: superlink ask scene.png "How many dogs are there?" --out annotated.png

    Example: superlink ask scene.png "What is region 1?" --point 120,80

    Example: superlink ask scene.png "Where is the dog?" --json - | jq .text
    """
    shown = [read_image(each) for each in (*(before or ()), image)]
    regions = parse_marks(points, boxes)
    console = console_for_people(json_file)
    with (
        connected_client(
            profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
        ) as client,
        client.chat(
            shown,
            prompt,
            stream=True,
            regions=regions,
            score_threshold=threshold,
            max_detections=most,
            max_rounds=rounds,
            max_tokens=max_tokens,
            temperature=temperature,
            drawing=None if seed is None else {"seed": seed},
        ) as events,
    ):
        for event in events:
            match event:
                case TextDelta(text):
                    console.print(text, end="", markup=False, highlight=False)
                case ObservationRead(observation):
                    found = ", ".join(f"{group.phrase}: {len(group.objects)}" for group in observation.groups)
                    notes.print(f"\n[dim]read from the tools: {escape(found)}[/]")
                case Finished(answer):
                    console.print()
    print_findings(answer, console)
    for error in answer.errors:
        notes.print(f"[bold red]{escape(error.service)} failed:[/] {escape(error.detail)}")
    if timings:
        print_timings(answer.timings, console)
    write_picture(shown[-1], answer.detections, out, answer.images)
    write_json(json_file, answer.model_dump_json(indent=2, by_alias=True))
