"""``python -m gateway``: run the REST edge of a profile."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gateway.server import run
from superlink.configuration import ConfigurationError
from superlink.logs import configure_logs
from superlink.profile import find_profile, load_profile
from superlink.telemetry import exported_traces


def main() -> int:
    """Returns the exit status: 0 after an orderly stop, 2 when the configuration is at fault."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="Run the REST gateway.")
    parser.add_argument("--profile", default="tiny", help="name of a profile, or a YAML file (default: tiny)")
    parser.add_argument("--host", help="address to listen on, in place of the profile's")
    parser.add_argument("--port", type=int, help="port to listen on, in place of the profile's")
    arguments = parser.parse_args()
    configure_logs("gateway")
    given: dict[str, Any] = {"gateway.host": arguments.host, "gateway.port": arguments.port}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        profile = load_profile(find_profile(arguments.profile), overrides)
        with exported_traces("gateway", profile.telemetry):
            run(profile)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
