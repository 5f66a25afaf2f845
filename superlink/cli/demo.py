"""``superlink demo``: a tour of the tools, one question for each, in one picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.markup import escape

from superlink.cli.connected import connected_client
from superlink.cli.console import fail, notes, output
from superlink.cli.files import read_image, write_file
from superlink.cli.options import (
    DEFAULT_PROFILE,
    ApiKeyOption,
    ProfileOption,
    SetOption,
    StartOption,
    TimeoutOption,
    UrlOption,
)
from superlink.cli.report import print_findings
from superlink.client import Client
from superlink.composition import Panel, captioned_grid
from superlink.connection_settings import DEFAULT_TIMEOUT_S
from superlink.drawing import annotate
from superlink.errors import SuperlinkError
from superlink.profile import superlink_home
from superlink.results import Answer, Readiness

SAMPLE = Path("assets", "samples", "tour.png")
# The same pictures are drawn every time.
SEED = 1
COLUMNS = 3


@dataclass(frozen=True)
class Stop:
    """One stop of the tour: a tool, and a question that needs it."""

    tool: str
    # The decoder behind the tool, as the gateway names it.
    service: str
    question: str
    is_about_sample: bool = True


STOPS = (
    Stop("detection", "detection", "Where are the butterflies?"),
    Stop("segmentation", "segmentation", "Segment the cow."),
    Stop("pose", "pose", "Find the keypoints of the person."),
    Stop("generation", "diffusion", "Draw a cat beside a pine tree.", is_about_sample=False),
    Stop("editing", "diffusion", "Make the butterflies red."),
)


@dataclass(frozen=True)
class Visit:
    """What came of a stop."""

    stop: Stop
    # None where nothing was asked, or nothing came back.
    answer: Answer | None = None
    # Why there is nothing to show.
    note: str = ""
    has_failed: bool = False


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Where to write the picture.")] = Path(
        "demo", "tour.png"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all questions and answers, by tool.")
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: StartOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Show every tool once: asks one question a tool about a sample image and writes one picture of all answers.

    Tools that the deployment lacks are left out. Exit code 1 when one that it has fails.

    Example: superlink demo --start
    """
    sample = read_image(superlink_home() / SAMPLE)
    with connected_client(
        profile=profile, settings=settings, url=url, start=start, api_key=api_key, timeout_s=timeout_s
    ) as client:
        deployed = deployed_services(client.ready())
        visits = [visit(client, stop, sample, deployed) for stop in STOPS]
    buffer = io.BytesIO()
    draw_tour(sample, visits).save(buffer, format="PNG")
    write_file(out, buffer.getvalue())
    if json_file is not None:
        document = {each.stop.tool: _document(each) for each in visits}
        write_file(json_file, json.dumps(document, indent=2, ensure_ascii=False).encode())
    failed = [each.stop.tool for each in visits if each.has_failed]
    if failed:
        fail(f"Not every tool did its work: {', '.join(failed)}.")


def deployed_services(readiness: Readiness) -> frozenset[str]:
    """The decoders of the deployment, ready or not. Ends the command where the gateway cannot say."""
    deployed = {stop.service for stop in STOPS} & {service.name for service in readiness.services}
    if not readiness.ready and not deployed:
        reasons = " ".join(f"{each.name} is not ready: {each.reason}" for each in readiness.services if not each.ready)
        fail(reasons or "The gateway is not ready.")
    return frozenset(deployed)


def visit(client: Client, stop: Stop, sample: bytes, deployed: frozenset[str]) -> Visit:
    """Ask a stop's question, if its tool is there, and print what comes of it."""
    output.print(f"[bold]{stop.tool}:[/] {escape(stop.question)}", highlight=False)
    visited = _ask(client, stop, sample) if stop.service in deployed else _left_out(stop)
    if visited.answer is not None:
        output.print(visited.answer.text, markup=False, highlight=False)
        print_findings(visited.answer, output)
    if visited.note:
        notes.print(f"[{'bold red' if visited.has_failed else 'yellow'}]{escape(visited.note)}[/]", highlight=False)
    output.print()
    return visited


def draw_tour(sample: bytes, visits: Sequence[Visit]) -> Image.Image:
    """The sample and a panel for every visit."""
    with Image.open(io.BytesIO(sample)) as image:
        panels = [Panel("sample", SAMPLE.as_posix(), image.copy())]
        for number, visited in enumerate(visits, 1):
            panels.append(Panel(f"{number} {visited.stop.tool}", visited.stop.question, _content(visited, image)))
    return captioned_grid(panels, COLUMNS)


def _ask(client: Client, stop: Stop, sample: bytes) -> Visit:
    try:
        answer = client.chat(sample if stop.is_about_sample else None, stop.question, drawing={"seed": SEED})
    except SuperlinkError as error:
        return Visit(stop, note=f"Failed: {error}", has_failed=True)
    if answer.errors:
        problems = " ".join(f"{error.service} failed: {error.detail}" for error in answer.errors)
        return Visit(stop, answer, problems, has_failed=True)
    if not any(call.tool == stop.service for call in answer.tool_calls):
        return Visit(stop, answer, f"The answer did not use {stop.tool}.", has_failed=True)
    return Visit(stop, answer)


def _left_out(stop: Stop) -> Visit:
    return Visit(stop, note=f"Left out: this deployment has no {stop.service} service.")


def _content(visited: Visit, sample: Image.Image) -> Image.Image | str:
    if visited.answer is None or visited.note:
        return visited.note
    if visited.answer.images:
        return visited.answer.images[0].image
    return annotate(sample, visited.answer.detections).image


def _document(visited: Visit) -> dict[str, Any]:
    answer = None if visited.answer is None else visited.answer.model_dump(mode="json", by_alias=True)
    return {"question": visited.stop.question, "answer": answer, "note": visited.note or None}
