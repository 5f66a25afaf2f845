"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from typing import Annotated

import typer
import yaml

from superlink.configuration import ConfigurationError
from superlink.profile import Profile, find_profile, load_profile

URL_VARIABLE = "SUPERLINK_URL"

ProfileOption = Annotated[
    str, typer.Option("--profile", "-p", help="Profile by name (infra/profiles/NAME.yaml) or path.", show_default=True)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the profile: --set gateway.port=9000."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar=URL_VARIABLE, help="A gateway that runs already. Default: the profile's."),
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


def gateway_url(profile: Profile, url: str | None) -> str:
    """The gateway to talk to: ``--url`` (or SUPERLINK_URL), else where the profile puts it."""
    return url or f"http://{profile.gateway.host}:{profile.gateway.port}"
