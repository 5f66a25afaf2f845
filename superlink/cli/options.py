"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from superlink.cli.console import fail
from superlink.configuration import ConfigurationError
from superlink.connection_settings import API_KEY_VARIABLE, URL_VARIABLE
from superlink.profile import Profile, find_profile, load_profile
from superlink.stack.state_folder import StateFolder, default_state_folder

# Headings under which --help lists options.
ASKED_PANEL = "What is asked"
RESULT_PANEL = "What becomes of the answer"
GATEWAY_PANEL = "Which gateway"

ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="Profile by name (infra/profiles/NAME.yaml) or path.",
        show_default=True,
        rich_help_panel=GATEWAY_PANEL,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key of the profile: --set gateway.port=9000.",
        rich_help_panel=GATEWAY_PANEL,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=URL_VARIABLE,
        help="A gateway that runs already. Default: the profile's.",
        rich_help_panel=GATEWAY_PANEL,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=API_KEY_VARIABLE,
        help="For a gateway that wants one. In the environment, other users of this machine cannot see it.",
        rich_help_panel=GATEWAY_PANEL,
    ),
]
StartOption = Annotated[
    bool,
    typer.Option("--start", help="Start a stack for this call and stop it afterwards.", rich_help_panel=GATEWAY_PANEL),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        help="Seconds to wait for the answer, repetitions included.",
        rich_help_panel=GATEWAY_PANEL,
    ),
]
ImageArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", help="A PNG, JPEG or WebP file; - reads it from standard input.", show_default=False
    ),
]
PointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--point", metavar="X,Y", help="Mark the thing at this pixel. Repeatable.", rich_help_panel=ASKED_PANEL
    ),
]
BoxOption = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="X1,Y1,X2,Y2",
        help="Mark the thing in this box, in pixels. Repeatable.",
        rich_help_panel=ASKED_PANEL,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", min=0, max=1, help="Drop what is less probable than this.", rich_help_panel=RESULT_PANEL
    ),
]
MostOption = Annotated[
    int | None,
    typer.Option("--max-detections", min=1, help="Keep the best so many.", rich_help_panel=RESULT_PANEL),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PNG",
        help="Write the image with boxes, masks and skeletons drawn on it.",
        rich_help_panel=RESULT_PANEL,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the whole answer; - writes it to standard output, and everything else to standard error.",
        rich_help_panel=RESULT_PANEL,
    ),
]
TimingsOption = Annotated[
    bool, typer.Option("--timings", help="Also print where the time went.", rich_help_panel=RESULT_PANEL)
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FOLDER",
        help="Where the stack on this machine keeps its Redis, logs and report.",
        show_default="runs/stack/PROFILE",
        rich_help_panel=GATEWAY_PANEL,
    ),
]
DEFAULT_PROFILE = os.environ.get("SUPERLINK_PROFILE", "tiny")


def read_profile(name: str, settings: list[str] | None) -> Profile:
    """The profile with ``--set`` applied. Raises ConfigurationError."""
    return load_profile(find_profile(name), parse_settings(settings or []))


def parse_settings(settings: list[str]) -> dict[str, object]:
    """``["gateway.port=9000"]`` as dotted keys and YAML values. Raises ConfigurationError for one without ``=``."""
    overrides: dict[str, object] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise ConfigurationError(f"--set {setting}: expected KEY=VALUE, for example gateway.port=9000.")
        overrides[key.strip()] = yaml.safe_load(value)
    return overrides


def parse_marks(points: list[str] | None, boxes: list[str] | None) -> list[dict[str, Any]]:
    """``--point`` and ``--box`` as regions of the API. Ends the command where one is not made of numbers."""
    marked: list[dict[str, Any]] = [{"points": [_numbers("--point", text, 2)]} for text in points or ()]
    return marked + [{"box": _numbers("--box", text, 4)} for text in boxes or ()]


def state_of(profile: Profile, folder: Path | None) -> StateFolder:
    """The state folder to use: ``--state``, else the profile's."""
    return default_state_folder(profile) if folder is None else StateFolder(folder)


def gateway_url(profile: Profile, url: str | None) -> str:
    """The gateway to talk to: ``--url`` (or SUPERLINK_URL), else where the profile puts it."""
    return url or profile.gateway.url


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        fail(f"{option} {text}: expected {count} numbers with commas between them, in pixels.", exit_code=2)
    return numbers
