"""``python -m orchestrator``: run the answer engine of a profile."""

from __future__ import annotations

import argparse
import asyncio
import sys

from orchestrator.server import serve
from superlink.configuration import ConfigurationError
from superlink.logs import configure_logs
from superlink.profile import find_profile, load_profile
from superlink.telemetry import exported_traces


def main() -> int:
    """Returns the exit status: 0 after an orderly stop, 2 when the configuration is at fault."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator", description="Run the answer engine.")
    parser.add_argument("--profile", default="tiny", help="name of a profile, or a YAML file (default: tiny)")
    parser.add_argument("--address", help="host:port to listen on, in place of the profile's")
    arguments = parser.parse_args()
    configure_logs("orchestrator")
    overrides = {"orchestrator.address": arguments.address} if arguments.address else {}
    try:
        profile = load_profile(find_profile(arguments.profile), overrides)
        with exported_traces("orchestrator", profile.telemetry):
            asyncio.run(serve(profile))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
